// Lays workflows out by layouts.json: rows of groups, each of columns of node ids, so that every wire runs to the right.
import fs from 'node:fs'
import path from 'node:path'
import { MAY_BE_CUT, drawnAs, fail, readJson, requireSound, screenshot, settle } from './page_common.mjs'

const LAYOUTS = new URL('layouts.json', import.meta.url).pathname
// what a node shows of a file, or of its work while it runs: [height over width of the picture, lines of text]
const SHOWS = {
  LoadImage: [1, 0], LoadVideo: [0.75, 0], SaveImage: [1.4, 0], SaveVideo: [0.75, 0], AtelierPhotoTwin: [1, 0],
  AtelierOSASISFineTune: [1, 3], AtelierOSASISFineTuneText: [1, 3], AtelierChooseOSASISSnapshot: [0.5, 3],
  AtelierStructuralEncode: [1, 0], AtelierOSASISStylize: [1, 1], AtelierDecode: [1, 0], AtelierSampleDiffAE: [1, 0],
  AtelierMMFSStylize: [1, 0], AtelierSampleStyleGAN2: [1, 0], AtelierMMFSFineTune: [1, 3],
  AtelierMMFSFineTuneText: [1, 3], AtelierMMFSTrainStage1: [1, 3], AtelierMMFSTrainStage2: [1, 3],
  AtelierMMFSTrainMapping: [1, 3], AtelierAlignFaces: [1, 0], AtelierGeometryFromReference: [1, 1],
  AtelierComparePictures: [0, 6], AtelierEditText: [0, 2], AtelierLoadDDPM: [0, 2] }

/** { id: [width, height] } that the shown nodes need as Nodes 2.0, on the classic page's scale: Nodes 2.0 draws positions
 *  and sizes 1.2 times as large, and its rows and titles take more than that. The height is that without pictures. */
const neededAsNodes2 = page => page.evaluate(cut => Object.fromEntries(
  [...document.querySelectorAll('[data-node-id]')].map(node => {
    const size = node.style.getPropertyValue('--node-height'), { scale } = window.app.canvas.ds
    node.style.setProperty('--node-height', '0px')
    const { width, height } = node.getBoundingClientRect()
    const lacks = (parts, side) => Math.max(0, ...[...parts].map(part => part[`scroll${side}`] - part[`client${side}`]))
    const texts = node.querySelectorAll('textarea')
    const pictures = [...node.querySelectorAll('img, video')].map(picture => picture.getBoundingClientRect().height)
    const needed = [width / scale + lacks(node.querySelectorAll(cut), 'Width'),
      (height - Math.max(0, ...pictures)) / scale + texts.length * lacks(texts, 'Height')]
    node.style.setProperty('--node-height', size)
    return [node.dataset.nodeId, [needed[0] / 1.2, needed[1] / 1.2 - window.LiteGraph.NODE_TITLE_HEIGHT]]
  })), MAY_BE_CUT)

/** Runs in the page. Gives every node its size and place. A row begins where all that it takes from lies left of it,
 *  and
 *  below or beside what was placed before. needed: see neededAsNodes2. shows: SHOWS. seeds: what all seed controls are set
 *  to; without, they stay as on a new node. */
function layOut ({ note, rows, seeds, needed, shows }) {
  const { graph, canvas: { ctx } } = window.app
  const GAP = 40, HEAD = 30, TITLE = 60, NOTE = [340, 300], WIDE = 1.2, LINE = 24, FRAME = 20
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
    const [width, height] = node.computeSize(), [widthOf2, heightOf2] = needed[node.id]
    const [picture, rows] = shows[node.type] ?? [0, 0]
    const wide = Math.ceil(Math.max(280, width, widthOf2, ...lines))
    node.setSize([wide, Math.ceil(Math.max(height, heightOf2 + picture * wide + rows * LINE + (picture && FRAME)))])
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
  await page.evaluate(([graph, name]) => {
    window.app.clean() // else nodes show the pictures of the workflow before, by their ids
    window.app.loadApiJson(graph, name)
  }, [readJson(apiFile), path.basename(apiFile)])
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
    await page.evaluate(layOut, { ...layout, needed: needed[apiFile], shows: SHOWS })
    await requireSound(page, apiFile)
    const workflow = await page.evaluate(() => window.app.graph.serialize())
    fs.writeFileSync(uiFile, JSON.stringify(workflow, null, 1) + '\n')
    console.log('wrote', uiFile)
  }
  await screenshot(page, shot)
}
