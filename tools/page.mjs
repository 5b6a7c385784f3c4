// Drives ComfyUI's real web page in a headless Chromium. Called by page.py, which starts ComfyUI:
//   page.mjs convert API.json UI.json [SHOT.png]     API format -> UI format, by the page itself
//   page.mjs check UI.json ...                       load each; nodes the page does not know fail
//   page.mjs run UI.json [SHOT.png]                  load, press Run, wait for the end
//   page.mjs template PACK NAME [SHOT.png]           the same, with the workflow opened by hand from the Templates browser
// Environment: ATELIER_URL, ATELIER_CHROMIUM, ATELIER_PAGE_MODULES (folder that holds playwright-core).
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createRequire } from 'node:module'

const env = name => process.env[name] ?? fail(`${name} is not set: call tools/page.py, which sets it`)
const { chromium } = createRequire(path.join(env('ATELIER_PAGE_MODULES'), 'x.js'))('playwright-core')
const url = env('ATELIER_URL')
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
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  const known = Object.keys(await ask('/object_info')).length
  await page.waitForFunction(count => window.app?.graph && window.app.extensionManager &&
    Object.keys(window.LiteGraph?.registered_node_types ?? {}).length >= count, known, { timeout: START_MS })
  await settle(page)
  return page
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

async function convert (page, apiFile, uiFile, shot) {
  await page.evaluate(graph => window.app.loadApiJson(graph, 'converted'), readJson(apiFile))
  await settle(page)
  await page.evaluate(() => {
    const pictured = new Set(['LoadImage', 'SaveImage', 'PreviewImage'])
    for (const node of window.app.graph._nodes) {
      const [width, height] = node.computeSize()
      node.setSize([Math.max(width, 260), pictured.has(node.type) ? Math.max(height, 320) : height])
    }
    window.app.graph.arrange(60)
  })
  await requireSound(page, apiFile)
  const workflow = await page.evaluate(() => window.app.graph.serialize())
  fs.writeFileSync(uiFile, JSON.stringify(workflow, null, 1) + '\n')
  console.log('wrote', uiFile)
  await screenshot(page, shot)
}

async function check (page, ...files) {
  for (const file of files) {
    await load(page, file)
    await requireSound(page, file)
  }
}

async function run (page, file, shot) {
  await check(page, file)
  await runShown(page)
  await screenshot(page, shot)
}

/** As a user would: menu, Templates, the pack's category, the workflow's card. */
async function template (page, pack, name, shot) {
  await page.evaluate(() => window.app.graph.clear())
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.getByText(pack, { exact: true }).last().click({ timeout: 20_000 })
  const card = page.locator(`[data-testid="template-workflow-${name}"]`)
    .or(page.locator(`img[alt="${name}"]`)).or(page.getByRole('heading', { name, exact: true })).first()
  await card.click({ timeout: 20_000 })
  await page.waitForFunction(() => window.app.graph._nodes.length > 0, null, { timeout: 20_000 })
  await settle(page)
  await requireSound(page, `template ${pack}/${name}`)
  await runShown(page)
  await screenshot(page, shot)
}

const commands = { convert, check, run, template }
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
