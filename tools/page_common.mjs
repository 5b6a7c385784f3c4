// What all commands of page.mjs share: the browser's page with ComfyUI in it, workflows in it, pictures of it.
import fs from 'node:fs'
import path from 'node:path'
import { createRequire } from 'node:module'

export const env = name => process.env[name] ?? fail(`${name} is not set: call tools/page.py, which sets it`)
export const { chromium } = createRequire(path.join(env('ATELIER_PAGE_MODULES'), 'x.js'))('playwright-core')
export const url = env('ATELIER_URL')
export const PAGES = ['classic', 'nodes2']
export const MAY_BE_CUT = 'input, textarea, span, [data-testid="node-title"] *' // Nodes 2.0; its labels have a fixed width
const START_MS = 120_000

export function fail (text) { throw new Error(text) }

export const readJson = file => JSON.parse(fs.readFileSync(file, 'utf8'))
export const ask = async where => (await fetch(url + where)).json()
export const pause = ms => new Promise(resolve => setTimeout(resolve, ms))
export const setting = (id, value) => fetch(`${url}/settings/${id}`, { method: 'POST', body: JSON.stringify(value) })

/** A page with ComfyUI loaded and every node type registered; the first-visit dialogs and banners are switched off. */
export async function openPage (browser) {
  await setting('Comfy.TutorialCompleted', true)
  await setting('Comfy.Workflow.ShowMissingNodesWarning', false)
  await setting('Comfy.Minimap.Visible', false)
  await setting('Comfy.VueNodes.Enabled', false)
  await browser.addInitScript(() => localStorage.setItem('vueNodesBannerDismissed', 'true'))
  const page = browser.pages()[0] ?? await browser.newPage()
  page.on('pageerror', error => console.log('page error:', error.message))
  await openComfy(page)
  return page
}

export async function openComfy (page) {
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  const known = Object.keys(await ask('/object_info')).length
  await page.waitForFunction(count => window.app?.graph && window.app.extensionManager &&
    Object.keys(window.LiteGraph?.registered_node_types ?? {}).length >= count, known, { timeout: START_MS })
  await settle(page)
}

/** The page as it draws nodes on a canvas ('classic'), or of HTML ('nodes2': the setting Nodes 2.0). */
export async function drawnAs (page, kind) {
  if (!PAGES.includes(kind)) fail(`${kind} is no page: take one of ${PAGES.join(', ')}`)
  await setting('Comfy.VueNodes.Enabled', kind === 'nodes2')
  await openComfy(page)
}

/** Waits until the graph's node count has not changed for a while: the page loads workflows in several ticks. */
export async function settle (page) {
  for (let last = -1, calm = 0; calm < 4; await pause(250)) {
    const now = await page.evaluate(() => window.app.graph._nodes.length)
    calm = now === last ? calm + 1 : 0
    last = now
  }
}

export async function load (page, file) {
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

export async function requireSound (page, name) {
  const seen = await inspect(page)
  console.log(name, JSON.stringify(seen))
  if (!seen.nodes) fail(`${name}: the page shows no nodes`)
  if (seen.unknown.length) fail(`${name}: unknown nodes ${[...new Set(seen.unknown)].join(', ')}`)
  if (seen.broken) fail(`${name}: ${seen.broken} links lead nowhere`)
}

/** Scrolls and zooms so that the whole graph is in view. */
export const showAll = page => page.evaluate(() => {
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

/** Puts a place of the graph at the window's top left, at 100 % zoom. */
export async function lookAt (page, x, y) {
  await page.evaluate(([x, y]) => {
    const { canvas } = window.app
    canvas.ds.scale = 1
    canvas.ds.offset[0] = -x
    canvas.ds.offset[1] = -y
    canvas.draw(true, true)
  }, [x, y])
  await page.evaluate(() => new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve))))
}

export async function screenshot (page, file) {
  if (!file) return
  await showAll(page)
  await pause(1000)
  await page.screenshot({ path: file })
  console.log('screenshot', file)
}
