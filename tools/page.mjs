// Drives ComfyUI's real web page in a headless Chromium. Called by page.py, which starts ComfyUI:
//   page.mjs convert API.json UI.json ... [SHOT.png] API format -> UI format, by the page itself, laid out by layouts.json
//   page.mjs measure PAGE OUT.json RUNS.json UI.json ...     boxes, wires and cut texts, as a page draws them
//   page.mjs pictures FOLDER RUNS.json UI.json ...           both pages, whole and in windows at 100 % zoom
//   page.mjs blueprints FOLDER                       the subgraphs of blueprints.json, made of workflows, into FOLDER
//   page.mjs library NAME API.json [SHOT.png]        a blueprint, added by hand from the node library; what it would queue
//   page.mjs check UI.json ...                       load each; nodes the page does not know fail
//   page.mjs queued FOLDER UI.json ...               load each; what the page would queue goes into FOLDER, in API format
//   page.mjs controls TYPE ...                  what each node's seed control is when it is added, and after loading it
//   page.mjs shown LANGUAGE TYPE ...                 what the page shows of each node in that language
//   page.mjs run UI.json [SHOT.png] [SET.json]       load, press Run, wait for the end
//   page.mjs template PACK NAME [SHOT.png] [SET.json]    the same, opened by hand from the Templates browser
//   page.mjs hand PAGE PACK NAME PLAN.json [SHOT.png]        a workflow used with mouse and keyboard: see page_hand.mjs
// Several commands in one Chromium: page.mjs controls TYPE ... then shown LANGUAGE TYPE ... then ...
// PAGE: classic or nodes2 (the setting Nodes 2.0). RUNS.json: what runs showed, see page_look.mjs; "-" for none.
// SET.json: { node type: { widget: value } }, set on the page before Run.
// Environment: ATELIER_URL, ATELIER_CHROMIUM, ATELIER_PAGE_MODULES (folder that holds playwright-core).
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import {
  ask, chromium, env, fail, load, openComfy, openPage, pause, readJson, requireSound, screenshot, setting, settle
} from './page_common.mjs'
import { hand, openTemplate, setWidgets } from './page_hand.mjs'
import { convert } from './page_layout.mjs'
import { measure, pictures } from './page_look.mjs'

const BLUEPRINTS = new URL('blueprints.json', import.meta.url).pathname
const WORKFLOWS = new URL('../workflows/', import.meta.url).pathname
const RUN_MS = Number(process.env.ATELIER_RUN_SECONDS ?? 900) * 1000
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']  // nothing outside is looked up

/** Queues what the page shows, as its Run button does, and waits for the end of it. */
async function runShown (page) {
  const before = Object.keys(await ask('/history'))
  await page.evaluate(() => window.app.queuePrompt(0, 1))
  const refused = await page.evaluate(() => window.app.lastNodeErrors)
  if (refused && Object.keys(refused).length) fail(`refused: ${JSON.stringify(refused)}`)
  for (const end = Date.now() + RUN_MS; Date.now() < end; await pause(300)) {
    const entry = Object.entries(await ask('/history')).find(([id]) => !before.includes(id))
    if (!entry) continue
    const { status, outputs } = entry[1]
    const error = status.messages.find(([kind]) => kind === 'execution_error')?.[1]
    if (status.status_str !== 'success') fail(`run ended with ${status.status_str}: ${error?.exception_message ?? ''}`)
    const pictures = Object.values(outputs).flatMap(output => output.images ?? [])
    console.log('success', JSON.stringify({ prompt_id: entry[0], pictures: pictures.length }))
    return
  }
  fail(`the run was not done after ${RUN_MS / 1000} s`)
}

/** Blueprints: nodes of a workflow as one subgraph node that shows some of their widgets. */
async function blueprints (page, folder) {
  for (const [name, { workflow, nodes, outputs, widgets }] of Object.entries(readJson(BLUEPRINTS))) {
    await load(page, path.join(WORKFLOWS, `${workflow}.json`))
    const made = await page.evaluate(([name, ids, outputs, widgets]) => {
      const { graph } = window.app
      const { subgraph, node } = graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id))))
      subgraph.name = node.title = name
      outputs.forEach((label, slot) => subgraph.renameOutput(subgraph.outputs[slot], label))
      for (const other of [...graph._nodes]) if (other !== node) graph.remove(other)
      for (const group of [...graph._groups]) graph.remove(group)
      node.properties.proxyWidgets = widgets.map(([id, widget]) => [String(id), widget])
      node.pos = [0, 0]
      return graph.serialize()
    }, [name, nodes, outputs, widgets])
    const file = path.join(folder, `${name}.json`)
    fs.writeFileSync(file, JSON.stringify(made, null, 1) + '\n')
    console.log('wrote', file)
  }
}

/** As a user would: node library, search, click; then what its nodes and widgets would queue. */
async function library (page, name, apiFile, shot) {
  await page.evaluate(() => window.app.graph.clear())
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library'))
  await page.locator('.node-lib-search-box input').first().fill(name)
  await page.locator('.node-lib-tree-explorer, .tree-explorer').getByText(name, { exact: true }).last().click({ timeout: 20_000 })
  await page.waitForFunction(() => window.app.graph._nodes.length > 0, null, { timeout: 20_000 })
  await settle(page)
  const [node, ...others] = await page.evaluate(() => window.app.graph._nodes.map(node => ({
    title: node.title, inputs: node.inputs.map(input => input.name), outputs: node.outputs.map(output => output.label ?? output.name),
    widgets: node.widgets.map(widget => widget.name) })))
  if (others.length) fail(`${name} adds ${others.length + 1} nodes`)
  console.log('library', JSON.stringify(node))
  const { output } = await page.evaluate(() => window.app.graphToPrompt())
  fs.writeFileSync(apiFile, JSON.stringify(output, null, 2))
  await screenshot(page, shot)
}

async function check (page, ...files) {
  for (const file of files) {
    await load(page, file)
    await requireSound(page, file)
  }
}

/** Writes the graphs that the page's Run button would send. */
async function queued (page, folder, ...files) {
  for (const file of files) {
    await check(page, file)
    const { output } = await page.evaluate(() => window.app.graphToPrompt())
    fs.writeFileSync(path.join(folder, path.basename(file)), JSON.stringify(output, null, 2))
  }
}

/** Prints { type: [control of a new node, control of a loaded node that was saved with 'increment'] }. */
async function controls (page, ...types) {
  const found = {}
  for (const type of types) {
    await page.evaluate(type => {
      window.app.graph.clear()
      window.app.graph.add(window.LiteGraph.createNode(type))
    }, type)
    await settle(page)
    const control = () => window.app.graph._nodes[0].widgets.find(widget => widget.name === 'control_after_generate')
    const read = () => page.evaluate(`(${control})().value`)
    found[type] = [await read()]
    const saved = await page.evaluate(`(${control})().value = 'increment'; window.app.graph.serialize()`)
    await page.evaluate(workflow => window.app.loadGraphData(workflow, true, true), saved)
    await settle(page)
    found[type].push(await read())
  }
  console.log('controls', JSON.stringify(found))
}

/** Prints { type: { title, category, description, inputs: {id: label}, outputs: [label] } } in a language, such as 'zh'. */
async function shown (page, language, ...types) {
  const speak = locale => setting('Comfy.Locale', locale)
  await speak(language)
  await openComfy(page)
  // frontend 1.32 forgets packs' texts when it loads a language later (ComfyUI_frontend issue 6748, mended by 7214)
  await page.evaluate(async ([language, texts]) => {
    const exported = Object.values(await import(document.querySelector('script[type=module]').src))
    exported.find(value => value?.global?.mergeLocaleMessage).global.mergeLocaleMessage(language, texts)
  }, [language, (await ask('/i18n'))[language]])
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions'))
  await settle(page)
  const found = await page.evaluate(types => Object.fromEntries(types.map(type => {
    const node = window.LiteGraph.createNode(type)
    window.app.graph.add(node)
    const { category, nodeData } = node.constructor
    const labels = part => part.map(({ name, localized_name: label }) => [name, label])
    return [type, { title: node.title, category, description: nodeData.description,
      inputs: Object.fromEntries(labels(node.inputs)), outputs: labels(node.outputs).map(([, label]) => label) }]
  })), types)
  await speak('en')
  console.log('shown', JSON.stringify(found))
}

async function run (page, file, shot, values) {
  await check(page, file)
  if (values) await setWidgets(page, readJson(values))
  await runShown(page)
  await screenshot(page, shot)
}

async function template (page, pack, name, shot, values) {
  await openTemplate(page, pack, name)
  if (values) await setWidgets(page, readJson(values))
  await runShown(page)
  await screenshot(page, shot)
}

const commands = { convert, measure, pictures, blueprints, library, check, queued, controls, shown, run, template, hand }
const calls = [[]]
for (const word of process.argv.slice(2)) word === 'then' ? calls.push([]) : calls.at(-1).push(word)
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'atelier-page-'))
let browser, page
try {
  if (calls.some(([command, ...args]) => !commands[command] || !args.length)) fail(`usage: page.mjs ${Object.keys(commands).join('|')} ... [then ...]`)
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: env('ATELIER_CHROMIUM'), headless: true, viewport: { width: 1600, height: 1000 }, args: FLAGS })
  page = await openPage(browser)
  for (const [k, [command, ...args]] of calls.entries()) {
    if (k) await openComfy(page)  // what the command before has left is gone
    await commands[command](page, ...args)
  }
} catch (error) {
  console.error('FAILED', error.message)
  process.exitCode = 1
  if (page && process.env.ATELIER_FAILED_SHOT) await page.screenshot({ path: process.env.ATELIER_FAILED_SHOT }).catch(() => {})
} finally {
  await browser?.close()
  fs.rmSync(profile, { recursive: true, force: true })
}
