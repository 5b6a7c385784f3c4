"""Stylized films, steadied along the optical flow of the film that they were made of (docs/faces.md, Films).

What is stylized of a frame and its result are (3, H, W) in [-1, 1]. A frame may hold several, each with a number that
it keeps over the film; what is stylized of whole frames has the number 0.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .faces.align import blurred
from .flow import moved, optical_flow, resized_flow, seen_in_both

MOST_FRAMES = 10.0  # that a film is smoothed over
REACH = 2.0  # of the filter, in its sigmas
MOST_SIDE = 640  # at which flow is computed
WINDOW = 3.0  # of the flow, in pixels
BLUR, UNLIKE = 1.5, 12 / 127.5  # of frames that are compared, in pixels; a difference that tells of another thing
CUT = 0.1  # share of two frames that must show the same, or there is a cut between them
CUT_SIDE, STILL = 96, 0.5  # at which cuts are searched; share of two frames that is the same without any flow
DETAIL, AROUND, MOST_GAIN = 1.0, 3.0, 2.0  # pixels of detail, pixels that its strength is measured over; of the gain
Piece = tuple[Tensor, Tensor]  # what was stylized, and its result


@dataclass(frozen=True)
class Step:
    """From a frame to another one: flow (H, W, 2), and trust (H, W), 0..1, that both show the same thing there."""
    flow: Tensor
    trust: Tensor

    def then(self, further: Step) -> Step:
        """This step, and a further one from where it leads."""
        both = moved(torch.cat([further.flow.movedim(2, 0), further.trust[None]]), self.flow)
        return Step(self.flow + both[:2].movedim(0, 2), self.trust * both[2])


@dataclass
class Shot:
    """What is seen in a frame, of at most MOST_SIDE, and its result; the steps to the same in the frame before (-1) and
    after (1), where it is there."""
    seen: Tensor
    result: Tensor
    steps: dict[int, Step] = field(default_factory=dict)


def reach_of(sigma: float) -> int:
    """How many frames before and after it a frame depends on."""
    return math.ceil(REACH * sigma)


def steadied_film(film: Iterable[Mapping[int, Piece]], sigma: float) -> Iterator[dict[int, Tensor]]:
    """The results of a film's frames, in their order: each the mean of what the same things became in the frames
    around, with Gaussian weights of `sigma` frames, and as much detail as it had. 0: the results as they are.

    At most 2 * reach_of(sigma) + 1 frames are in memory. A frame depends on no others than those.
    """
    reach, window, place = reach_of(sigma), list[dict[int, Shot]](), 0  # place: of the next one that is finished
    for frame in film:
        window.append({number: Shot(reduced(seen), result) for number, (seen, result) in frame.items()})
        if reach and len(window) > 1:
            connect(window[-2], window[-1])
        if len(window) > place + reach:
            yield finished(window, place, sigma)
            place += 1
            if place > reach:
                window.pop(0)
                place -= 1
    for rest in range(place, len(window)):
        yield finished(window, rest, sigma)


def reduced(picture: Tensor, most: int = MOST_SIDE) -> Tensor:
    """With sides of at most `most`."""
    scale = most / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def connect(frame: Mapping[int, Shot], following: Mapping[int, Shot]) -> None:
    """Finds the steps between what is in both frames, at the same size."""
    for number in frame.keys() & following.keys():
        one, other = frame[number], following[number]
        if one.seen.shape == other.seen.shape and one.result.shape == other.result.shape:
            one.steps[1], other.steps[-1] = steps(one.seen, other.seen)


def steps(frame: Tensor, following: Tensor) -> tuple[Step, Step]:
    """From a frame to the following one, and back; across a cut, without trust."""
    there, back = optical_flow(frame, following, WINDOW), optical_flow(following, frame, WINDOW)
    found = [Step(flow, seen_in_both(flow, other).float() * alike(one, moved(then, flow)))
             for flow, other, one, then in ((there, back, frame, following), (back, there, following, frame))]
    if min(float(step.trust.mean()) for step in found) < CUT:
        found = [Step(step.flow, torch.zeros_like(step.trust)) for step in found]
    return found[0], found[1]


@dataclass
class Continuity:
    """continuity(frame (3, H, W) in [-1, 1]) -> which frame a film's next one goes on from: 1 the one before it, 2 the
    one before that (after a flash or a frame that is damaged), 0 none: it is cut."""
    before: list[Tensor] = field(default_factory=list)

    def __call__(self, frame: Tensor) -> int:
        small = reduced(frame, CUT_SIDE)
        steps_back = next((k for k, other in enumerate(self.before, 1) if not is_cut(other, small)), 0)
        self.before = [small, *self.before[:1]]
        return steps_back


def shot_starts(steps_back: Sequence[int]) -> list[int]:
    """The frames that begin another shot, of what `Continuity` says of every frame. A single frame between two that
    belong together begins none."""
    return [k for k, (own, following) in enumerate(zip(steps_back, [*steps_back[1:], 1])) if not own and following != 2]


def is_cut(frame: Tensor, following: Tensor) -> bool:
    """Whether two frames that follow one another share less than CUT. The flow is computed for those that are apart."""
    if frame.shape != following.shape:
        return True
    if float(alike(frame, following).mean()) > STILL:
        return False
    return not any(bool(step.trust.any()) for step in steps(frame, following))


def alike(one: Tensor, other: Tensor) -> Tensor:
    """(H, W): 1 where two pictures have the same colours, towards 0 where they do not."""
    apart = blurred(one - other, BLUR).abs().amax(0)
    return torch.exp(-(apart / UNLIKE).square())


def finished(window: Sequence[Mapping[int, Shot]], place: int, sigma: float) -> dict[int, Tensor]:
    """The results of one of the window's frames."""
    return {number: steadied([frame.get(number) for frame in window], place, sigma) if sigma else shot.result
            for number, shot in window[place].items()}


def steadied(shots: Sequence[Shot | None], place: int, sigma: float) -> Tensor:
    """The result of the shot at `place`, by those around it."""
    own = shots[place]
    assert own is not None
    total, weights = own.result, torch.ones_like(own.result[:1])
    for k, shot, path in [*paths(shots[place::-1], -1, sigma), *paths(shots[place:], 1, sigma)]:
        weight = path.trust * alike(own.seen, moved(shot.seen, path.flow)) * math.exp(-k * k / (2 * sigma * sigma))
        size = (own.result.shape[1], own.result.shape[2])
        if weight.shape != size:
            weight = F.interpolate(weight[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        flow = path.flow if path.flow.shape[:2] == size else resized_flow(path.flow, size)
        total = total + weight * moved(shot.result, flow, "bicubic")
        weights = weights + weight
    return own.result if total is own.result else with_detail_of(own.result, total / weights)


def paths(shots: Sequence[Shot | None], way: int, sigma: float) -> Iterator[tuple[int, Shot, Step]]:
    """(distance in frames, shot, the steps there) of those that the first of the shots is connected with. way: -1 for
    shots backwards in time, 1 forwards."""
    path: Step | None = None
    for k, (last, shot) in enumerate(zip(shots, shots[1:reach_of(sigma) + 1]), 1):
        step = None if last is None else last.steps.get(way)
        if step is None or shot is None:
            return
        path = step if path is None else path.then(step)
        yield k, shot, path


def with_detail_of(own: Tensor, mean: Tensor) -> Tensor:
    """A mean of pictures with fine detail as strong as in one of them, where the mean has made it weaker."""
    detail = mean - blurred(mean, DETAIL)
    wanted, left = (blurred(x.square().mean(0, keepdim=True), AROUND) for x in (own - blurred(own, DETAIL), detail))
    gain = (wanted / left.clamp_min(1e-6)).sqrt().clamp(1, MOST_GAIN)
    return (mean + (gain - 1) * detail).clamp(-1, 1)
