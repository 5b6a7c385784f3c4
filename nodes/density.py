"""The node that ranks pictures by how well a DiffAE knows their like."""
from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..evaluate.density import DISTANCES, Ranking, RankSettings, Scorer, distances, picture_of
from ..evaluate.evaluator import Evaluator
from ..evaluate.registry import metric
from ..models.precision import AUTO
from . import host, images, inputs, sockets
from .base import AtelierNode, first
from .metrics import advice, memory_for
from .osasis import decode, encode, structural_code
from .sockets import DiffAEModel, MetricNetworks

MOST = 1000  # pictures of either end
DEFAULTS = RankSettings()


class RankByDensity(AtelierNode):
    JOINED = ("image",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierRankByDensity", display_name="Rank by Density", category="Atelier/metrics",
            is_input_list=True,
            description="Sorts pictures by how badly the DiffAE reconstructs them. Badly reconstructed ones are rare "
                        "to it: the paper's pictures of low density, on which stylizers fail most. 'atelier rank' does "
                        "it for whole folders.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The DiffAE that reconstructs the pictures."),
                inputs.image("image", "The pictures. Lists of pictures are taken as one batch."),
                inputs.choice("distance", DISTANCES, DEFAULTS.distance,
                              "Distance of picture and reconstruction. lpips_alex, lpips_vgg: LPIPS, which needs its "
                              "network in networks. encoder_distance: a substitute made of the DiffAE's encoder."),
                io.Int.Input("k", default=1, min=1, max=MOST,
                             tooltip="How many pictures are given out as low and as high density. At most half of "
                                     "all."),
                inputs.steps(DEFAULTS.encode_steps, "Steps of encoding, of the whole schedule. 250 is DiffAE's.",
                             "encode_steps"),
                inputs.steps(DEFAULTS.decode_steps, "Steps of decoding, of the whole schedule. 20 is DiffAE's.",
                             "decode_steps"),
                io.Float.Input("t0", display_name="strength (t0)", default=DEFAULTS.t0, min=0.05, max=1.0, step=0.05,
                               tooltip="Noise level up to which pictures are encoded. 1 is DiffAE's whole chain."),
                sockets.METRIC_NETWORKS.Input("networks", optional=True,
                                              tooltip="From Load Metric Networks, with AlexNet or LPIPS-VGG."),
                inputs.precision(),
                inputs.solver(DEFAULTS.solver)],
            outputs=[
                io.Image.Output("sorted", display_name="sorted", tooltip="All pictures, lowest density first."),
                io.Image.Output("low", display_name="low density", tooltip="The k rarest pictures, the rarest first."),
                io.Image.Output("high", display_name="high density",
                                tooltip="The k commonest pictures, the commonest first."),
                io.String.Output("scores", display_name="scores",
                                 tooltip="What the distance is of, then a line for each picture: rank, number in the "
                                         "batch, distance, and low or high."),
                io.Image.Output("histogram", display_name="histogram", tooltip="How often each distance occurs.")])

    @classmethod
    def validate_inputs(cls, encode_steps: int | None = None, decode_steps: int | None = None) -> bool | str:
        return inputs.valid_steps(first(encode_steps), first(decode_steps))

    @classmethod
    def execute(cls, diffae: DiffAEModel, image: Tensor, distance: str, k: int, encode_steps: int, decode_steps: int,
                t0: float, networks: MetricNetworks | None = None, precision: str = AUTO,
                solver: str = DEFAULTS.solver) -> io.NodeOutput:
        inputs.require(inputs.valid_steps(encode_steps, decode_steps))
        settings = RankSettings(distance, encode_steps, decode_steps, t0, solver, precision=precision)
        wanted, models = metric(distance).networks, networks or MetricNetworks()
        evaluator = Evaluator(diffae=diffae.net, public=models.public(wanted, "clean", advice()),
                              check_interrupt=host.check_interrupt)
        scorer = Scorer(evaluator, settings)  # a missing network is said before the work
        x = images.to_model(image, diffae.net.image_size)
        Ranking({str(i): 0.0 for i in range(len(x))}, k)
        z = encode(diffae, x)
        code = structural_code(diffae, x, z, encode_steps, t0, solver, precision)
        rebuilt = images.to_model(decode(diffae, code, z, decode_steps, t0, precision, solver), diffae.net.image_size)
        with host.running(diffae.patched, *models.patched(wanted), memory=memory_for({"photos": x})):
            values = distances(evaluator, distance, x, rebuilt).tolist()
        ranking = Ranking({str(i): value for i, value in enumerate(values)}, k)
        report = report_of(ranking, scorer)
        order = [[int(name) for name in names] for names in (ranking.order, ranking.low, ranking.high)]
        return io.NodeOutput(*(image[rows] for rows in order), report, images.from_pil(picture_of(ranking, distance)),
                             ui=ui.PreviewText(report))


def report_of(ranking: Ranking, scorer: Scorer) -> str:
    lines = [f"{rank}. picture {name}: {value:.4f}" + (f" ({end} density)" if end else "")
             for rank, name, value, end in ranking.rows()]
    return "\n".join([f"distance: {metric(scorer.settings.distance).title}, {scorer.network}", *lines])


NODES = [RankByDensity]
