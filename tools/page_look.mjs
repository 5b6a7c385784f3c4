// Looks at workflows as the page really draws them, at 100 % zoom, on the classic page and as Nodes 2.0.
import fs from 'node:fs'
import path from 'node:path'
import { MAY_BE_CUT, PAGES, drawnAs, fail, load, lookAt, pause, readJson, requireSound, showAll } from './page_common.mjs'

const VIEW = [1600, 1000], MARGIN = 80, BAR = 60 // px: the window, around a workflow, the page's own bar at the top

/** Shows on the loaded workflow what a run of it shows: { outputs: {id: what its node gave}, texts: {id: [line]},
 *  previews: [id] }. */
async function showRun (page, seen) {
  await page.evaluate(async ({ outputs, texts, previews }) => {
    const { api } = window.comfyAPI.api
    for (const [node, output] of Object.entries(outputs)) {
      api.dispatchCustomEvent('executed', { node, display_node: node, output, prompt_id: '' })
    }
    for (const [nodeId, lines] of Object.entries(texts)) {
      for (const text of lines) api.dispatchCustomEvent('progress_text', { nodeId, text })
    }
    const picture = new OffscreenCanvas(256, 256)
    picture.getContext('2d').fillRect(0, 0, 256, 256)
    const blob = await picture.convertToBlob()
    for (const id of previews) {
      api.dispatchCustomEvent('b_preview_with_metadata', { blob, nodeId: id, displayNodeId: id })
    }
  }, seen)
  await pause(1500)
}

/** Runs in the page. { nodes: [{ id, type, box: [left, top, right, bottom], cut: [texts that are cut off] }],
 *  groups: [{ title, box, width: of the title }], links: [{ from, to, start, end }] }, in the graph's units. */
async function seenBoxes ([nodes2, mayBeCut]) {
  const { canvas, graph } = window.app
  const [dx, dy] = canvas.ds.offset
  const view = canvas.canvas.getBoundingClientRect()
  const shown = id => document.querySelector(`[data-node-id="${id}"]`)
  const htmlBox = element => {
    const { left, top, right, bottom } = element.getBoundingClientRect()
    return [left - view.left - dx, top - view.top - dy, right - view.left - dx, bottom - view.top - dy]
  }
  const middle = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2]
  const dot = (key, place) => nodes2 ? middle(htmlBox(document.querySelector(`[data-slot-key="${key}"]`))) : place()
  const ends = link => [
    dot(`${link.origin_id}-out-${link.origin_slot}`,
      () => graph.getNodeById(link.origin_id).getOutputPos(link.origin_slot)),
    dot(`${link.target_id}-in-${link.target_slot}`, () => graph.getNodeById(link.target_id).getInputPos(link.target_slot))]

  const frame = () => new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))
  const hides = box => box.scrollHeight > box.clientHeight + 1 && box.clientHeight > 0
  const cutOfHtml = element => [...element.querySelectorAll(mayBeCut)]
    .filter(part => hides(part) && part.tagName === 'TEXTAREA' ||
      part.scrollWidth > part.clientWidth + 1 && part.clientWidth > 0)
    .map(part => part.value ?? part.textContent).filter(text => text.trim())
  const cutOfCanvas = async node => {
    const written = [], write = CanvasRenderingContext2D.prototype.fillText
    canvas.ds.offset[0] = 100 - node.pos[0]
    canvas.ds.offset[1] = 100 - node.pos[1]
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
      const at = this.getTransform().transformPoint(new DOMPoint(x, y))
      const inside = at.x >= 100 && at.x <= 100 + node.size[0] && at.y >= 70 && at.y <= 100 + node.size[1]
      if (inside && /[…‥․]/.test(text)) written.push(text)
      return write.call(this, text, x, y, ...rest)
    }
    canvas.draw(true, true)
    CanvasRenderingContext2D.prototype.fillText = write
    const texts = (node.widgets ?? []).map(widget => widget.element).filter(part => part?.tagName === 'TEXTAREA')
    if (texts.length) await frame()
    return [...written, ...texts.filter(hides).map(part => part.value)]
  }

  const links = [...graph.links.values()].map(link => {
    const [start, end] = ends(link)
    return { from: link.origin_id, to: link.target_id, start, end }
  })
  const nodes = []
  for (const node of graph._nodes) {
    const box = nodes2 ? htmlBox(shown(node.id)) : [...node.boundingRect].map((v, i, r) => i < 2 ? v : r[i - 2] + v)
    nodes.push({ id: node.id, type: node.type, box, cut: nodes2 ? cutOfHtml(shown(node.id)) : await cutOfCanvas(node) })
  }
  const { ctx } = canvas
  const groups = graph._groups.map(({ title, pos: [x, y], size: [width, height], font_size: size }) => {
    ctx.font = `${size}px ${window.LiteGraph.GROUP_FONT}`
    return { title, box: [x, y, x + width, y + height], width: ctx.measureText(title).width + size / 2 }
  })
  return { nodes, groups, links }
}

/** Writes { workflow: what seenBoxes gives } as a page ('classic' or 'nodes2') draws them. RUNS.json, or '-': what runs
 *  of them showed, { workflow: see showRun }. */
export async function measure (page, kind, outFile, runsFile, ...files) {
  await drawnAs(page, kind)
  const found = {}, runs = runsFile === '-' ? {} : readJson(runsFile)
  for (const file of files) {
    const name = path.basename(file, '.json')
    await load(page, file)
    await requireSound(page, file)
    await lookAt(page, 0, 0)
    if (runs[name]) await showRun(page, runs[name])
    await pause(500)
    found[name] = await page.evaluate(seenBoxes, [kind === 'nodes2', MAY_BE_CUT])
  }
  fs.writeFileSync(outFile, JSON.stringify(found, null, 1))
}

/** Writes a workflow as both pages draw it: whole, and in windows at 100 % zoom where there is anything to see. */
export async function pictures (page, folder, runsFile, ...files) {
  if (!files.length) fail('pictures FOLDER RUNS.json|- UI.json ...')
  const runs = runsFile === '-' ? {} : readJson(runsFile)
  fs.mkdirSync(folder, { recursive: true })
  for (const kind of PAGES) {
    await drawnAs(page, kind)
    for (const file of files) {
      const name = path.basename(file, '.json')
      await load(page, file)
      if (runs[name]) await showRun(page, runs[name])
      const shoot = part => page.screenshot({ path: path.join(folder, `${name}_${kind}_${part}.png`) })
      await showAll(page)
      await pause(1000)
      await shoot('whole')
      await lookAt(page, 0, 0)
      const { nodes } = await page.evaluate(seenBoxes, [kind === 'nodes2', MAY_BE_CUT])
      const [left, top] = [0, 1].map(i => Math.min(...nodes.map(({ box }) => box[i])) - MARGIN)
      const [right, bottom] = [2, 3].map(i => Math.max(...nodes.map(({ box }) => box[i])))
      const step = [VIEW[0] - MARGIN, VIEW[1] - BAR - MARGIN]
      for (let y = top, row = 0; y < bottom; y += step[1], row++) {
        for (let x = left, column = 0; x < right; x += step[0], column++) {
          const sees = ({ box }) => box[0] < x + VIEW[0] && x < box[2] && box[1] < y + VIEW[1] && y < box[3]
          if (!nodes.some(sees)) continue
          await lookAt(page, x, y - BAR)
          await pause(500)
          await shoot(`${row}_${column}`)
        }
      }
    }
  }
}
