// Lays workflows out by layouts.json: rows of groups, each of columns of node ids, so that every wire runs to the right.
import fs from 'node:fs'
import path from 'node:path'
import { MAY_BE_CUT, drawnAs, fail, readJson, requireSound, screenshot, settle } from './page_common.mjs'

const LAYOUTS = new URL('layouts.json', import.meta.url).pathname
// [width, height] that a node needs at least for pictures and text that appear while it runs
const ROOM = {
  LoadImage: [280, 390], SaveImage: [280, 330], AtelierPhotoTwin: [280, 500], AtelierOSASISFineTune: [280, 700],
  AtelierSaveOSASISStyle: [280, 180], AtelierStructuralEncode: [280, 400], AtelierOSASISStylize: [280, 480],
  AtelierDecode: [280, 380], AtelierSampleDiffAE: [280, 480], AtelierMMFSStylize: [280, 480],
  AtelierSampleStyleGAN2: [280, 480], AtelierMMFSFineTune: [280, 780], AtelierMMFSFineTuneText: [280, 860],
  AtelierOSASISFineTuneText: [280, 860], AtelierChooseOSASISSnapshot: [280, 480], AtelierMMFSTrainStage1: [280, 760],
  AtelierMMFSTrainStage2: [280, 860], AtelierMMFSTrainMapping: [280, 800], AtelierSaveMMFSStyle: [280, 180],
  AtelierSaveMMFS: [280, 200], AtelierAlignFaces: [280, 680] }

/** { id: [width, height] } that the shown nodes need as Nodes 2.0, on the classic page's scale: Nodes 2.0 draws positions
 *  and sizes 1.2 times as large, and its rows and titles take more than that. */
const neededAsNodes2 = page => page.evaluate(cut => Object.fromEntries(
  [...document.querySelectorAll('[data-node-id]')].map(node => {
    const size = node.style.getPropertyValue('--node-height'), { scale } = window.app.canvas.ds
    node.style.setProperty('--node-height', '0px')
    const { width, height } = node.getBoundingClientRect()
    const lacks = (parts, side) => Math.max(0, ...[...parts].map(part => part[`scroll${side}`] - part[`client${side}`]))
    const texts = node.querySelectorAll('textarea')
    const needed = [width / scale + lacks(node.querySelectorAll(cut), 'Width'),
      height / scale + texts.length * lacks(texts, 'Height')]
    node.style.setProperty('--node-height', size)
    return [node.dataset.nodeId, [needed[0] / 1.2, needed[1] / 1.2 - window.LiteGraph.NODE_TITLE_HEIGHT]]
  })), MAY_BE_CUT)

/** Runs in the page. Gives every node its size and place. A row begins where all that it takes from lies left of it,
 *  and
 *  below or beside what was placed before. needed: see neededAsNodes2. room: ROOM. seeds: what all seed controls are set
 *  to; without, they stay as on a new node. */
function layOut ({ note, rows, seeds, needed, room }) {
  const { graph, canvas: { ctx } } = window.app
  const GAP = 40, HEAD = 30, TITLE = 60, NOTE = [340, 300], WIDE = 1.8
  const textWidth = (text, size) => {
    ctx.font = `${size}px ${window.LiteGraph.NODE_FONT}`
    return ctx.measureText(text).width
  }
  const text = window.LiteGraph.createNode('Note')
  graph.add(text)
  text.title = 'Help'
  text.widgets[0].value = note
  text.setSize(NOTE)
  text.pos = [0, HEAD]
  for (const node of graph._nodes) {
    if (node === text) continue
    for (const widget of node.widgets ?? []) {
      if (seeds && widget.name === 'control_after_generate') widget.value = seeds
    }
    const lines = (node.widgets ?? []).filter(widget => !widget.element)
      .map(({ label, name, value }) => textWidth(`${label ?? name}${value}`, window.LiteGraph.NODE_SUBTEXT_SIZE) + 92)
    const sizes = [node.computeSize(), [Math.max(0, ...lines), 0], needed[node.id] ?? [0, 0], room[node.type] ?? [280, 0]]
    node.setSize([0, 1].map(i => Math.ceil(Math.max(...sizes.map(size => size[i])))))
  }
  const suppliers = node => (node.inputs ?? []).filter(input => input.link != null)
    .map(input => graph.getNodeById(graph.links.get(input.link).origin_id))

  /** Places of a row's nodes, groups and right edge as if it began at (0, 0). */
  const measured = groups => {
    const places = new Map(), boxes = []
    let x = 0, bottom = 0
    for (const { title, columns } of groups) {
      const left = x
      let low = 0
      x += GAP / 2
      for (const column of columns) {
        let below = TITLE, widest = 0
        for (const id of column) {
          const node = graph.getNodeById(id)
          places.set(node, [x, below + HEAD])
          below += HEAD + node.size[1] + GAP
          widest = Math.max(widest, node.size[0])
        }
        x += widest + GAP
        low = Math.max(low, below)
      }
      x = Math.max(x - GAP / 2, left + textWidth(title, window.LiteGraph.DEFAULT_GROUP_FONT) + GAP / 2)
      boxes.push({ title, x: left, size: [x - left, low - GAP / 2] })
      x += GAP
      bottom = Math.max(bottom, low)
    }
    return { places, boxes, width: x - GAP, height: bottom }
  }

  const placed = [] // { left, right, bottom } of the rows
  const done = new Set()
  for (const row of rows) {
    const { places, boxes, width, height } = measured(row)
    let least = NOTE[0] + 2 * GAP
    for (const [node, [x]] of places) {
      for (const from of suppliers(node)) {
        const right = places.has(from) ? places.get(from)[0] + from.size[0] : from.pos[0] + from.size[0]
        if (places.has(from) ? right > x : !done.has(from)) {
          throw new Error(`node ${node.id} takes from node ${from.id}: place that in a column before it`)
        }
        if (done.has(from)) least = Math.max(least, right + 2 * GAP - x)
      }
    }
    const lowest = left => Math.max(0, ...placed
      .filter(other => other.left < left + width + GAP && left < other.right + GAP).map(other => other.bottom + GAP))
    const extent = left => Math.max(left + width, WIDE * (lowest(left) + height), ...placed.flatMap(
      ({ right, bottom }) => [right, WIDE * bottom]))
    const lefts = [least, ...placed.map(other => other.right + GAP).filter(x => x > least).sort((a, b) => a - b)]
    const left = lefts.reduce((best, x) => extent(x) < extent(best) ? x : best)
    const top = lowest(left)
    for (const [node, [x, y]] of places) {
      node.pos = [left + x, top + y]
      done.add(node)
    }
    for (const { title, x, size } of boxes) {
      const group = new window.LiteGraph.LGraphGroup(title)
      graph.add(group)
      group.pos = [left + x, top]
      group.size = size
    }
    placed.push({ left, right: left + width, bottom: top + height })
  }
}

/** The layout of an API workflow; fails where a node has no place in it. */
function layoutOf (apiFile) {
  const name = path.basename(apiFile, '.json')
  const layout = readJson(LAYOUTS)[name] ?? fail(`${LAYOUTS} says nothing about ${name}`)
  const placed = layout.rows.flatMap(row => row.flatMap(group => group.columns.flat())).map(String)
  const missing = Object.keys(readJson(apiFile)).filter(id => !placed.includes(id))
  if (missing.length) fail(`${LAYOUTS} has no place for the nodes ${missing.join(', ')} of ${name}`)
  return layout
}

async function show (page, apiFile) {
  await page.evaluate(([graph, name]) => window.app.loadApiJson(graph, name), [readJson(apiFile), path.basename(apiFile)])
  await settle(page)
}

/** files: API.json UI.json, API.json UI.json, .. and maybe a SHOT.png of the last one. */
export async function convert (page, ...files) {
  const shot = files.at(-1).endsWith('.png') ? files.pop() : null
  const pairs = files.flatMap((file, i) => i % 2 ? [] : [[file, files[i + 1] ?? fail(`convert ${file} into what?`)]])
  const needed = {}
  await drawnAs(page, 'nodes2')
  for (const [apiFile] of pairs) {
    await show(page, apiFile)
    needed[apiFile] = await neededAsNodes2(page)
  }
  await drawnAs(page, 'classic')
  for (const [apiFile, uiFile] of pairs) {
    const layout = layoutOf(apiFile)
    await show(page, apiFile)
    await page.evaluate(layOut, { ...layout, needed: needed[apiFile], room: ROOM })
    await requireSound(page, apiFile)
    const workflow = await page.evaluate(() => window.app.graph.serialize())
    fs.writeFileSync(uiFile, JSON.stringify(workflow, null, 1) + '\n')
    console.log('wrote', uiFile)
  }
  await screenshot(page, shot)
}
