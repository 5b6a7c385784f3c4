// Drives ComfyUI's real web page in a headless Chromium. Called by page.py, which starts ComfyUI:
//   page.mjs convert API.json UI.json [SHOT.png]     API format -> UI format, by the page itself, laid out by layouts.json
//   page.mjs blueprints FOLDER                       the subgraphs of blueprints.json, made of workflows, into FOLDER
//   page.mjs library NAME API.json [SHOT.png]        a blueprint, added by hand from the node library; what it would queue
//   page.mjs check UI.json ...                       load each; nodes the page does not know fail
//   page.mjs queued FOLDER UI.json ...               load each; what the page would queue goes into FOLDER, in API format
//   page.mjs controls TYPE ...                  what each node's seed control is when it is added, and after loading it
//   page.mjs shown LANGUAGE TYPE ...                 what the page shows of each node in that language
//   page.mjs run UI.json [SHOT.png] [SET.json]       load, press Run, wait for the end
//   page.mjs template PACK NAME [SHOT.png] [SET.json]    the same, opened by hand from the Templates browser
// SET.json: { node type: { widget: value } }, set on the page before Run.
// Environment: ATELIER_URL, ATELIER_CHROMIUM, ATELIER_PAGE_MODULES (folder that holds playwright-core).
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createRequire } from 'node:module'

const env = name => process.env[name] ?? fail(`${name} is not set: call tools/page.py, which sets it`)
const { chromium } = createRequire(path.join(env('ATELIER_PAGE_MODULES'), 'x.js'))('playwright-core')
const url = env('ATELIER_URL')
const LAYOUTS = new URL('layouts.json', import.meta.url).pathname
const BLUEPRINTS = new URL('blueprints.json', import.meta.url).pathname
const WORKFLOWS = new URL('../workflows/', import.meta.url).pathname
const START_MS = 120_000
const RUN_MS = Number(process.env.ATELIER_RUN_SECONDS ?? 900) * 1000
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']  // nothing outside is looked up

function fail (text) { throw new Error(text) }

const readJson = file => JSON.parse(fs.readFileSync(file, 'utf8'))
const ask = async where => (await fetch(url + where)).json()
const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

/** A page with ComfyUI loaded and every node type registered; the first-visit dialogs are switched off on the server. */
async function openPage (browser) {
  for (const [id, value] of Object.entries({ 'Comfy.TutorialCompleted': true, 'Comfy.Workflow.ShowMissingNodesWarning': false })) {
    await fetch(`${url}/settings/${id}`, { method: 'POST', body: JSON.stringify(value) })
  }
  const page = browser.pages()[0] ?? await browser.newPage()
  page.on('pageerror', error => console.log('page error:', error.message))
  await openComfy(page)
  return page
}

async function openComfy (page) {
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  const known = Object.keys(await ask('/object_info')).length
  await page.waitForFunction(count => window.app?.graph && window.app.extensionManager &&
    Object.keys(window.LiteGraph?.registered_node_types ?? {}).length >= count, known, { timeout: START_MS })
  await settle(page)
}

/** Waits until the graph's node count has not changed for a while: the page loads workflows in several ticks. */
async function settle (page) {
  for (let last = -1, calm = 0; calm < 4; await pause(250)) {
    const now = await page.evaluate(() => window.app.graph._nodes.length)
    calm = now === last ? calm + 1 : 0
    last = now
  }
}

async function load (page, file) {
  await page.evaluate(workflow => window.app.loadGraphData(workflow, true, true), readJson(file))
  await settle(page)
}

/** { nodes, links, unknown: types that no installed pack offers, broken: links whose ends are missing } */
const inspect = page => page.evaluate(() => {
  const { graph } = window.app
  const links = [...(graph.links instanceof Map ? graph.links.values() : Object.values(graph.links))].filter(Boolean)
  const ids = new Set(graph._nodes.map(node => String(node.id)))
  return {
    nodes: graph._nodes.length,
    links: links.length,
    unknown: graph._nodes.map(node => node.type)
      .filter(type => !(type in window.LiteGraph.registered_node_types) && !['Note', 'MarkdownNote'].includes(type)),
    broken: links.filter(link => !ids.has(String(link.origin_id)) || !ids.has(String(link.target_id))).length
  }
})

async function requireSound (page, name) {
  const seen = await inspect(page)
  console.log(name, JSON.stringify(seen))
  if (!seen.nodes) fail(`${name}: the page shows no nodes`)
  if (seen.unknown.length) fail(`${name}: unknown nodes ${[...new Set(seen.unknown)].join(', ')}`)
  if (seen.broken) fail(`${name}: ${seen.broken} links lead nowhere`)
}

/** Scrolls and zooms so that the whole graph is in view. */
const showAll = page => page.evaluate(() => {
  const { canvas, graph } = window.app
  const boxes = graph._nodes.map(node => [node.pos[0], node.pos[1] - 40, node.pos[0] + node.size[0], node.pos[1] + node.size[1]])
  const [left, top] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])))
  const [right, bottom] = [2, 3].map(i => Math.max(...boxes.map(box => box[i])))
  const view = canvas.canvas.getBoundingClientRect()
  const scale = Math.min(1, (view.width - 160) / (right - left), (view.height - 240) / (bottom - top))
  canvas.ds.scale = scale
  canvas.ds.offset[0] = (view.width / scale - (right - left)) / 2 - left
  canvas.ds.offset[1] = (view.height / scale - (bottom - top)) / 2 - top
  canvas.setDirty(true, true)
})

async function screenshot (page, file) {
  if (!file) return
  await showAll(page)
  await pause(1000)
  await page.screenshot({ path: file })
  console.log('screenshot', file)
}

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

/** Gives every node its size and place: rows of groups, each of columns of node ids; a note before the first group.
 *  seeds: what all seed controls are set to; without, they stay as on a new node. */
function layOut ({ note, rows, seeds }) {
  const { graph } = window.app
  const GAP = 40, HEAD = 30, TITLE = 60
  const room = { // for pictures and text that appear while it runs
    LoadImage: 320, SaveImage: 320, AtelierPhotoTwin: 500, AtelierOSASISFineTune: 700, AtelierSaveOSASISStyle: 180,
    AtelierStructuralEncode: 400, AtelierOSASISStylize: 480, AtelierDecode: 380, AtelierSampleDiffAE: 480,
    AtelierMMFSStylize: 480, AtelierSampleStyleGAN2: 480, AtelierMMFSFineTune: 780, AtelierMMFSFineTuneText: 860,
    AtelierOSASISFineTuneText: 860, AtelierChooseOSASISSnapshot: 480,
    AtelierMMFSTrainStage1: 760, AtelierMMFSTrainStage2: 860, AtelierMMFSTrainMapping: 800, AtelierSaveMMFSStyle: 180,
    AtelierSaveMMFS: 200, AtelierAlignFaces: 680 }
  const text = window.LiteGraph.createNode('Note')
  graph.add(text)
  text.title = 'Help'
  text.widgets[0].value = note
  text.setSize([340, 280])
  for (const node of graph._nodes) {
    if (node === text) continue
    for (const widget of node.widgets ?? []) {
      if (seeds && widget.name === 'control_after_generate') widget.value = seeds
    }
    const [width, height] = node.computeSize()
    node.setSize([Math.max(width, 280), Math.max(height, room[node.type] ?? 0)])
  }
  let y = 0
  for (const row of rows) {
    let x = 0, bottom = y
    const groups = row === rows[0] ? [{ columns: [[text.id]] }, ...row] : row
    for (const { title, columns } of groups) {
      const left = x
      let low = y
      x += GAP / 2
      for (const column of columns) {
        let below = y + TITLE, widest = 0
        for (const id of column) {
          const node = graph.getNodeById(id)
          node.pos = [x, below + HEAD]
          below += HEAD + node.size[1] + GAP
          widest = Math.max(widest, node.size[0])
        }
        x += widest + GAP
        low = Math.max(low, below)
      }
      x -= GAP / 2
      if (title) {
        const group = new window.LiteGraph.LGraphGroup(title)
        graph.add(group)
        group.pos = [left, y]
        group.size = [x - left, low - y - GAP / 2]
      }
      x += GAP
      bottom = Math.max(bottom, low)
    }
    y = bottom + GAP
  }
}

async function convert (page, apiFile, uiFile, shot) {
  const name = path.basename(apiFile, '.json')
  const layout = readJson(LAYOUTS)[name] ?? fail(`${LAYOUTS} says nothing about ${name}`)
  const api = readJson(apiFile)
  const placed = layout.rows.flatMap(row => row.flatMap(group => group.columns.flat())).map(String)
  const missing = Object.keys(api).filter(id => !placed.includes(id))
  if (missing.length) fail(`${LAYOUTS} has no place for the nodes ${missing.join(', ')} of ${name}`)
  await page.evaluate(([graph, name]) => window.app.loadApiJson(graph, name), [api, name])
  await settle(page)
  await page.evaluate(layOut, layout)
  await requireSound(page, apiFile)
  const workflow = await page.evaluate(() => window.app.graph.serialize())
  fs.writeFileSync(uiFile, JSON.stringify(workflow, null, 1) + '\n')
  console.log('wrote', uiFile)
  await screenshot(page, shot)
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
  const speak = locale => fetch(`${url}/settings/Comfy.Locale`, { method: 'POST', body: JSON.stringify(locale) })
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

/** Sets widgets of the shown graph by node type and name, as a user would. */
async function setWidgets (page, file) {
  if (!file) return
  const unset = await page.evaluate(values => window.app.graph._nodes.flatMap(node =>
    Object.entries(values[node.type] ?? {}).flatMap(([name, value]) => {
      const widget = node.widgets?.find(widget => widget.name === name)
      if (!widget) return [`${node.type}.${name}`]
      widget.value = value
      widget.callback?.(value)
      return []
    })), readJson(file))
  if (unset.length) fail(`there are no widgets ${unset.join(', ')}`)
}

async function run (page, file, shot, values) {
  await check(page, file)
  await setWidgets(page, values)
  await runShown(page)
  await screenshot(page, shot)
}

/** As a user would: menu, Templates, the pack's category, the workflow's card. */
async function template (page, pack, name, shot, values) {
  await page.evaluate(() => window.app.graph.clear())
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.getByText(pack, { exact: true }).last().click({ timeout: 20_000 })
  const card = page.locator(`[data-testid="template-workflow-${name}"]`)
    .or(page.locator(`img[alt="${name}"]`)).or(page.getByRole('heading', { name, exact: true })).first()
  await card.click({ timeout: 20_000 })
  await page.waitForFunction(() => window.app.graph._nodes.length > 0, null, { timeout: 20_000 })
  await settle(page)
  await requireSound(page, `template ${pack}/${name}`)
  await setWidgets(page, values)
  await runShown(page)
  await screenshot(page, shot)
}

const commands = { convert, blueprints, library, check, queued, controls, shown, run, template }
const [command, ...args] = process.argv.slice(2)
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'atelier-page-'))
let browser, page
try {
  if (!commands[command] || !args.length) fail(`usage: page.mjs ${Object.keys(commands).join('|')} ...`)
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: env('ATELIER_CHROMIUM'), headless: true, viewport: { width: 1600, height: 1000 }, args: FLAGS })
  page = await openPage(browser)
  await commands[command](page, ...args)
} catch (error) {
  console.error('FAILED', error.message)
  process.exitCode = 1
  if (page && process.env.ATELIER_FAILED_SHOT) await page.screenshot({ path: process.env.ATELIER_FAILED_SHOT }).catch(() => {})
} finally {
  await browser?.close()
  fs.rmSync(profile, { recursive: true, force: true })
}
