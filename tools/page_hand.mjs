// Uses a workflow in the page as a user does: with the mouse and the keyboard, on the classic page or as Nodes 2.0.
import {
  ask, drawnAs, fail, lookAt, pause, readJson, requireSound, screenshot, settle, showAll
} from './page_common.mjs'

const RUN_MS = Number(process.env.ATELIER_RUN_SECONDS ?? 900) * 1000
const CLICK_MS = 20_000

/** Sets widgets of the shown graph by node type and name, without hands. */
export async function setWidgets (page, values) {
  const unset = await page.evaluate(values => window.app.graph._nodes.flatMap(node =>
    Object.entries(values[node.type] ?? {}).flatMap(([name, value]) => {
      const widget = node.widgets?.find(widget => widget.name === name)
      if (!widget) return [`${node.type}.${name}`]
      widget.value = value
      widget.callback?.(value)
      return []
    })), values)
  if (unset.length) fail(`there are no widgets ${unset.join(', ')}`)
}

/** Sidebar, Templates, the pack's category, the workflow's card. */
export async function openTemplate (page, pack, name) {
  await page.evaluate(() => window.app.graph.clear())
  await page.getByRole('button', { name: 'Templates' }).first().click({ timeout: CLICK_MS })
  await page.getByText(pack, { exact: true }).last().click({ timeout: CLICK_MS })
  const card = page.locator(`[data-testid="template-workflow-${name}"]`)
    .or(page.locator(`img[alt="${name}"]`)).or(page.getByRole('heading', { name, exact: true })).first()
  await card.click({ timeout: CLICK_MS })
  await page.waitForFunction(() => window.app.graph._nodes.length > 0, null, { timeout: CLICK_MS })
  await settle(page)
  await requireSound(page, `template ${pack}/${name}`)
}

const idOf = (page, type) => page.evaluate(type => window.app.graph._nodes.find(node => node.type === type).id, type)
const bring = async (page, id) => lookAt(page, ...await page.evaluate(id => {
  const { pos } = window.app.graph.getNodeById(id)
  return [pos[0] - 300, pos[1] - 150]
}, id))

/** Types a number into a widget, or picks from its list, with the node in view at 100 % zoom. A whole number: the boxes
 *  of Nodes 2.0 (frontend 1.32) take no point where there was none. */
async function changeByHand (page, kind, { type, widget: name, value }) {
  const id = await idOf(page, type)
  await bring(page, id)
  const look = () => page.evaluate(([id, name]) => {
    const node = window.app.graph.getNodeById(id), widget = node.widgets.find(widget => widget.name === name)
    const view = window.app.canvas.canvas.getBoundingClientRect(), [dx, dy] = window.app.canvas.ds.offset
    return { value: widget.value, combo: widget.type === 'combo',
      at: [view.left + node.pos[0] + dx + node.size[0] / 2, view.top + node.pos[1] + dy + widget.last_y + 10] }
  }, [id, name])
  const { at, combo, value: before } = await look()
  if (before === value) fail(`${type}.${name} is ${value} already`)
  if (kind === 'classic') {
    await page.mouse.click(...at)
    if (combo) await page.locator('.litecontextmenu .litemenu-entry').getByText(value, { exact: true }).click({ timeout: CLICK_MS })
    else {
      await page.locator('.graphdialog input').fill(String(value), { timeout: CLICK_MS })
      await page.keyboard.press('Enter')
    }
  } else {
    const row = page.locator(`[data-node-id="${id}"] .lg-node-widget`).filter({ has: page.getByText(name, { exact: true }) })
    if (combo) {
      await row.locator('[role="combobox"]').click({ timeout: CLICK_MS })
      await page.getByRole('option', { name: value, exact: true }).click({ timeout: CLICK_MS })
    } else {
      await row.locator('input').click({ timeout: CLICK_MS })
      await page.keyboard.press('Control+A')
      await page.keyboard.type(String(value))
      await page.keyboard.press('Enter')
    }
  }
  await pause(300)
  const { value: now } = await look()
  if (now !== value) fail(`${type}.${name} is ${now} after ${value} was given by hand on the page ${kind}`)
}

/** Presses Run. Resolves at its end to { prompt_id, status, error, node: that an interrupt stopped, seen: what the
 *  watched node showed while it ran }. press: presses Cancel once the watched node has gone that part of its way. */
async function runByHand (page, kind, watched, press = null) {
  const before = Object.keys(await ask('/history'))
  await bring(page, watched)
  await page.getByTestId('queue-button').click({ timeout: CLICK_MS })
  const seen = { progress: [], preview: false, text: '' }
  for (const end = Date.now() + RUN_MS; Date.now() < end; await pause(150)) {
    const now = await page.evaluate(([id, nodes2]) => {
      const { app } = window, node = app.graph.getNodeById(id)
      if (String(app.runningNodeId) !== String(id)) return null
      const picture = nodes2 ? document.querySelector(`[data-node-id="${id}"] img`) : node.imgs?.[0]
      return { progress: node.progress ?? 0, preview: picture?.naturalWidth > 0 && picture.src.startsWith('blob:'),
        text: node.widgets.find(({ name }) => name.startsWith('$$node-text'))?.value ?? '' }
    }, [watched, kind === 'nodes2'])
    if (now) {
      if (now.progress > (seen.progress.at(-1) ?? 0)) seen.progress.push(now.progress)
      seen.preview ||= now.preview
      seen.text = now.text || seen.text
      if (press !== null && now.progress >= press) {
        await page.getByRole('button', { name: 'Cancel current run' }).click({ timeout: CLICK_MS })
        press = null
      }
    }
    const entry = Object.entries(await ask('/history')).find(([id]) => !before.includes(id))
    if (!entry) continue
    const { status } = entry[1]
    const told = kind => status.messages.find(([name]) => name === kind)?.[1]
    return { prompt_id: entry[0], status: told('execution_interrupted') ? 'cancelled' : status.status_str, seen,
      error: told('execution_error')?.exception_message ?? '', node: told('execution_interrupted')?.node_id ?? null }
  }
  fail(`the run was not done after ${RUN_MS / 1000} s`)
}

/** Sizes in px of the pictures that each node of a type shows; waits until all of them show one. */
async function shownPictures (page, kind, type) {
  const shown = () => page.evaluate(([nodes2, type]) => window.app.graph._nodes
    .filter(node => node.type === type)
    .map(node => nodes2 ? [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)] : node.imgs ?? [])
    .map(pictures => pictures.map(({ naturalWidth: width, naturalHeight: height }) => [width, height])),
  [kind === 'nodes2', type])
  await showAll(page) // the classic page loads the pictures that are in view
  for (let k = 0; k < 40; k++) {
    const found = await shown()
    if (found.every(pictures => pictures.length && pictures.every(([width]) => width))) return found
    await pause(500)
  }
  return shown()
}

/** PLAN.json: { set: {type: {widget: value}} before anything, watch: type, first: changes by hand before the first run,
 *  second: changes before the run that is cancelled, and made again; cancel: the part of
 *  its way at which the watched node is cancelled }. Prints what each of the three runs showed. */
export async function hand (page, kind, pack, name, planFile, shot) {
  const plan = readJson(planFile)
  await drawnAs(page, kind)
  await openTemplate(page, pack, name)
  await setWidgets(page, plan.set)
  const watched = await idOf(page, plan.watch)
  for (const change of plan.first) await changeByHand(page, kind, change)
  const first = await runByHand(page, kind, watched)
  first.pictures = await shownPictures(page, kind, 'SaveImage')
  if (shot) await screenshot(page, shot)
  for (const change of plan.second) await changeByHand(page, kind, change)
  const cancelled = await runByHand(page, kind, watched, plan.cancel)
  cancelled.running = (await ask('/queue')).queue_running.length
  const again = await runByHand(page, kind, watched)
  again.pictures = await shownPictures(page, kind, 'SaveImage')
  console.log('hand', JSON.stringify({ watched, first, cancelled, again }))
}
