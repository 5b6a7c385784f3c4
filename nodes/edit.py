"""Nodes that edit semantic codes: by text, by attribute, and along directions that were found before."""
from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..models.attributes import STRENGTH
from ..models.edit import MAX_STRENGTH, SemanticDirection, z_statistics
from ..models.features.clip import PREPROCESSINGS
from ..models.loading import load_direction, save_direction
from ..models.osasis import training_memory
from ..models.precision import PRECISIONS
from ..train.text_edit import (
    GRADIENTS,
    TEMPLATES,
    Subject,
    TextEditConfig,
    TextEdits,
    edit_by_text,
    text_directions,
)
from . import host, inputs, sockets
from .base import AtelierNode
from .monitor import TrainingMonitor
from .saving import holds, save_once
from .sockets import Attributes, CLIPModel, DiffAEModel, SemanticCode, StructuralCode

DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(TextEditConfig)}
MOST_EDITS = 16  # of a node at once


def strength(default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input("strength", default=default, min=-MAX_STRENGTH, max=MAX_STRENGTH, step=0.05,
                          tooltip=f"{tooltip} 0 changes nothing. Negative: the opposite.")


def structure_input(optional: bool) -> io.Custom:
    return sockets.STRUCTURAL_CODE.Input(
        "structure", optional=optional, tooltip="The pictures' structural codes. " + (
            "They are repeated for each edit, so that Decode and Stylize with OSASIS have as many of both."
            if optional else "They stay as they are."))


def edited_outputs() -> list:
    return [sockets.SEMANTIC_CODE.Output("edited", display_name="semantic",
                                         tooltip="The edited codes, for Decode and Mix Codes: all pictures with the "
                                                 "first edit, then all with the second."),
            sockets.STRUCTURAL_CODE.Output("repeated", display_name="structure",
                                           tooltip="The structural codes, as many as edited codes.")]


def lines_of(text: str, what: str) -> list[str]:
    """The lines of a text that are not empty, each once. ValueError for none and for too many."""
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 1 <= len(found) <= MOST_EDITS:
        raise ValueError(f"{what} has {len(found)} lines; write 1 to {MOST_EDITS}, an edit each")
    return found


def repeated(structure: StructuralCode | None, semantic: SemanticCode, edits: int) -> Any:
    """The structural code for that many edits; where there is none, its output is blocked. ValueError if it is not of
    the codes' pictures."""
    if structure is None:
        return host.blocked("connect the pictures' structural code to this node: it is repeated for each edit")
    sockets.same_model("the structural code", structure.fingerprint, semantic.fingerprint)
    if len(semantic.z) != len(structure.x):
        raise ValueError(f"{len(semantic.z)} semantic codes but {len(structure.x)} structural codes; encode the same "
                         "pictures")
    return structure.repeated(edits)


def applied(direction: SemanticDirection, semantic: SemanticCode, strength: float,
            structure: StructuralCode | None) -> tuple[SemanticCode, Any]:
    """(edited codes, structural codes for them)."""
    sockets.same_model("the direction", direction.model, semantic.fingerprint)
    code = SemanticCode(direction.edited(semantic.z, strength), semantic.fingerprint)
    return code, repeated(structure, semantic, len(direction.names))


class EditText(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEditText", display_name="Edit Semantics with Text", category="Atelier/edit",
            description="Edits pictures by words: learns the change of their semantic codes that turns them from the "
                        "source text to a target text, by the directional CLIP loss. The networks and the structural "
                        "codes stay as they are. Decode gives photos, Mix Codes and Stylize with OSASIS stylized ones.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The DiffAE that made the codes, with its latent DDIM."),
                sockets.CLIP.Input("clip", tooltip="CLIP that compares pictures and texts. OSASIS uses OpenAI's "
                                                   "ViT-B/32."),
                sockets.SEMANTIC_CODE.Input("semantic", tooltip="The pictures' semantic codes, one for each."),
                structure_input(optional=False),
                io.String.Input("source", default="face", tooltip="What the pictures show, in the words in which the "
                                                                  "target differs from it."),
                io.String.Input("targets", default="smiling face", multiline=True,
                                tooltip="What they shall show. Several lines are several edits of each picture."),
                strength(1.0, "How much of the change is added. 1: as learned. Another value needs no new learning."),
                io.Int.Input("steps", default=DEFAULTS["steps"], min=1, max=2000,
                             tooltip="Optimiser steps. More steps change more."),
                io.Float.Input("lr", default=DEFAULTS["lr"], min=0.0001, max=1.0, step=0.001, round=1e-6,
                               tooltip="Learning rate of the normalised code. More changes more in as many steps."),
                inputs.steps(DEFAULTS["decode_steps"], "Steps of the whole schedule. Of these, t0 x steps are run.",
                             "decode_steps"),
                inputs.choice("gradient", GRADIENTS, DEFAULTS["gradient"],
                              "one-step: the loss of the prediction at one index after the other, a network call a "
                              "step. chain: the loss of the decoded picture, through all calls, as in the paper. It "
                              "takes about ten times as long."),
                io.Boolean.Input("shared", default=DEFAULTS["shared"],
                                 tooltip="One change for all pictures. It is a better direction for other pictures. "
                                         "Off: one for each picture, as in the paper."),
                inputs.advanced(io.Float.Input(
                    "l2_weight", default=DEFAULTS["l2_weight"], min=0.0, max=100.0, step=0.05,
                    tooltip="Weight of the change's mean square. More keeps the code nearer to the picture's.")),
                inputs.advanced(io.Float.Input(
                    "l1_weight", default=DEFAULTS["l1_weight"], min=0.0, max=100.0, step=0.05,
                    tooltip="Weight of the mean difference of edited and unedited pictures.")),
                inputs.advanced(inputs.choice(
                    "templates", TEMPLATES, DEFAULTS["templates"],
                    "Sentences around the texts. imagenet: the mean over CLIP's 80. none: the text alone. auto: none "
                    "for a CLIP with a word list, as the demo's, else imagenet.")),
                inputs.advanced(inputs.choice(
                    "clip_preprocessing", PREPROCESSINGS, DEFAULTS["clip_preprocessing"],
                    "How pictures are given to CLIP. openai: as CLIP was trained. osasis: as the official program of "
                    "OSASIS does. mmfs: as that of MMFS.")),
                inputs.advanced(io.Int.Input("rows", default=DEFAULTS["rows"], min=1, max=64,
                                             tooltip="Pictures x texts at a time. More is faster on a GPU and takes "
                                                     "more memory. The result is the same.")),
                inputs.advanced(inputs.choice("precision", PRECISIONS, DEFAULTS["precision"],
                                              "Number format of the networks on a GPU."))],
            outputs=[
                *edited_outputs(),
                sockets.DIRECTION.Output("direction", display_name="direction",
                                         tooltip="The change of each text, the mean over the pictures, for Apply "
                                                 "Direction and Save Direction."),
                io.String.Output("report", display_name="report",
                                 tooltip="For each text how well the pictures' change agrees with it, and how long it "
                                         "is.")])

    @classmethod
    def validate_inputs(cls, decode_steps: int | None = None, source: str | None = None,
                        targets: str | None = None) -> bool | str:
        try:
            lines_of("linked" if targets is None else targets, "targets")
        except ValueError as error:
            return str(error)
        if source is not None and not source.strip():
            return "the source is empty; describe what the pictures show, such as 'face'"
        return inputs.valid_steps(decode_steps)

    @classmethod
    def execute(cls, diffae: DiffAEModel, clip: CLIPModel, semantic: SemanticCode, structure: StructuralCode,
                source: str, targets: str, strength: float, **values: Any) -> io.NodeOutput:
        config, texts = TextEditConfig(**values), lines_of(targets, "targets")
        inputs.require(inputs.valid_steps(config.decode_steps))
        config.indices(structure.t0)
        sockets.same_model("the semantic code", semantic.fingerprint, diffae.fingerprint)
        more = repeated(structure, semantic, len(texts))
        for text in (source, *texts):
            clip.net.check_prompt(text)
        settings = ("text edit", clip.fingerprint, source, *texts, structure.t0, *astuple(config))
        numbers = diffae.codes.get({"z": semantic.z, "x_t0": structure.x}, settings,
                                lambda: learned(diffae, clip, semantic, structure, (source, *texts), config))
        found = TextEdits.unpacked(numbers, len(texts), *semantic.z.shape)
        code = SemanticCode(found.edited(semantic.z, strength), diffae.fingerprint)
        direction = SemanticDirection(found.directions, tuple(texts), diffae.fingerprint, {
            "edit": "text", "source": source, "clip": clip.fingerprint, "t0": structure.t0,
            **{field: getattr(config, field) for field in DEFAULTS}})
        report = report_of(found, texts, z_statistics(diffae.net)[1].cpu())
        return io.NodeOutput(code, more, direction, report, ui=ui.PreviewText(report))


def learned(diffae: DiffAEModel, clip: CLIPModel, semantic: SemanticCode, structure: StructuralCode,
            texts: tuple[str, ...], config: TextEditConfig) -> Tensor:
    """The edits, packed; texts: the source and the targets."""
    z_statistics(diffae.net)
    monitor = TrainingMonitor(config.steps)
    memory = training_memory(diffae.unet, min(config.rows, len(semantic.z) * (len(texts) - 1)))
    with host.trainable(diffae.net, clip.net, semantic.z, structure.x, memory=memory) as (net, clip_net, z, x):
        directions = text_directions(clip_net, texts[0], texts[1:], config.templates)
        subject = Subject(z, z_statistics(net)[1], x, structure.t0, directions)
        found = edit_by_text(net, clip_net, subject, config, monitor.hooks())
    return found.packed()


def report_of(found: TextEdits, texts: list[str], std: Tensor) -> str:
    length = (found.change / std).square().mean((1, 2)).sqrt()
    return "\n".join(f"{text}: CLIP direction {cos:.3f}, change {share:.2f} deviations of the code"
                     for text, cos, share in zip(texts, found.agreement.mean(1).tolist(), length.tolist()))


class EditAttribute(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEditAttribute", display_name="Edit Attribute", category="Atelier/edit",
            description="Edits pictures by an attribute's name: moves their semantic codes along its direction in a "
                        "linear classifier, as DiffAE does. Nothing is trained.",
            inputs=[
                sockets.ATTRIBUTES.Input("classifier", tooltip="The classifier, of the DiffAE that made the codes."),
                sockets.SEMANTIC_CODE.Input("semantic", tooltip="The pictures' semantic codes, one for each."),
                io.String.Input("attributes", default="smiling", multiline=True,
                                tooltip="Names of the classifier, which Load Attribute Classifier shows. Several lines "
                                        "are several edits of each picture."),
                strength(STRENGTH, "Length of the step, as a share of a code's typical length. 0.3 is DiffAE's."),
                structure_input(optional=True)],
            outputs=[
                *edited_outputs(),
                sockets.DIRECTION.Output("direction", display_name="direction",
                                         tooltip="The attributes' directions, for Apply Direction and Save Direction."),
                io.String.Output("report", display_name="report",
                                 tooltip="How probable each attribute is to the classifier, before and after.")])

    @classmethod
    def validate_inputs(cls, attributes: str | None = None) -> bool | str:
        try:
            return bool(lines_of("linked" if attributes is None else attributes, "attributes"))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, classifier: Attributes, semantic: SemanticCode, attributes: str, strength: float,
                structure: StructuralCode | None = None) -> io.NodeOutput:
        net, names = classifier.classifier, lines_of(attributes, "attributes")
        sockets.same_model("the attribute classifier", classifier.fingerprint, semantic.fingerprint)
        rows = [net.index(name) for name in names]
        direction = SemanticDirection(torch.stack([net.direction(row) for row in rows]),
                                      tuple(net.names[row] for row in rows), semantic.fingerprint,
                                      {"edit": "attribute", "classifier": classifier.name})
        code, more = applied(direction, semantic, strength, structure)
        report = "\n".join(f"{net.names[row]}: probability {net.probability(semantic.z, row).mean():.3f} before, "
                           f"{net.probability(part, row).mean():.3f} after"
                           for row, part in zip(rows, code.z.split(len(semantic.z)), strict=True))
        return io.NodeOutput(code, more, direction, report, ui=ui.PreviewText(report))


class ApplyDirection(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierApplyDirection", display_name="Apply Direction", category="Atelier/edit",
            description="Edits other pictures along directions that were found before, by text or by attribute. "
                        "Nothing is trained.",
            inputs=[
                sockets.DIRECTION.Input("direction", tooltip="The directions: of an edit, or of Load Direction."),
                sockets.SEMANTIC_CODE.Input("semantic", tooltip="The pictures' semantic codes, one for each."),
                strength(1.0, "How much of the direction is added. 1: a text's as learned. Attributes take about 0.3."),
                structure_input(optional=True)],
            outputs=edited_outputs())

    @classmethod
    def execute(cls, direction: SemanticDirection, semantic: SemanticCode, strength: float,
                structure: StructuralCode | None = None) -> io.NodeOutput:
        return io.NodeOutput(*applied(direction, semantic, strength, structure))


class SaveDirection(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveDirection", display_name="Save Direction", category="Atelier/edit",
            is_output_node=True,
            description="Saves directions in models/diffae_directions as a small safetensors file, with their names, "
                        "how they were made and the fingerprint of their DiffAE. Load Direction lists it after a "
                        "refresh of the page (R).",
            inputs=[sockets.DIRECTION.Input("direction", tooltip="The directions to save."),
                    inputs.file_name("my_direction"),
                    inputs.overwrite("direction")],
            outputs=inputs.saved_path())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, direction: SemanticDirection, name: str, overwrite: bool) -> io.NodeOutput:
        return save_once("diffae_directions", name, overwrite,
                         lambda path: holds(path, load_direction, direction, made_with),
                         lambda path: save_direction(path, direction), "direction")


def made_with(direction: SemanticDirection) -> tuple[object, dict[str, Tensor]]:
    return (direction.names, direction.model, direction.settings), {"z": direction.z}


NODES = [EditText, EditAttribute, ApplyDirection, SaveDirection]
