"""CLIP: sizes read off a file, tokenizers, the ways of preprocessing a picture, the small model's captions."""

import json
import socket
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models import ops
from oneshot_atelier.models.features import clip as clip_module
from oneshot_atelier.models.features import packages
from oneshot_atelier.models.features.clip import Clip, ClipConfig, WordTokenizer, build, detect
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import captions, labels, retrieval
from oneshot_atelier.train import small_clip as training
from oneshot_atelier.train.data import Augmentations

TOLD = golden.load_case("osasis_train").config["clip"]
GOLDEN = ClipConfig(*(TOLD[name] for name in (
    "embed_dim", "image_resolution", "vision_patch_size", "vision_width", "vision_layers", "context_length",
    "vocab_size", "transformer_width", "transformer_layers")))


# --- configuration -----------------------------------------------------------------------------------------------
def test_the_sizes_are_read_off_the_shapes():
    assert detect(golden.weights("osasis_train", "clip.")) == GOLDEN
    assert not detect(golden.weights("osasis_train", "clip."), quick_gelu=False).quick_gelu


def test_a_small_clip_is_detected_but_for_its_words_and_picture_statistics():
    found = detect(tiny.clip().net.state_dict(), quick_gelu=tiny.CLIP.quick_gelu)
    assert replace(found, words=tiny.WORDS, mean=tiny.CLIP.mean, std=tiny.CLIP.std) == tiny.CLIP


@pytest.mark.parametrize("config", [tiny.CLIP, GOLDEN, training.small_config(("a", "b"), 128),
                                    training.small_config((), 64)])
def test_configurations_survive_json(config):
    assert ClipConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_the_published_model_has_its_size():
    config = ClipConfig(512, 224, 32, 768, 12, 77, 49408, 512, 12)
    with torch.device("meta"):
        net = Clip(config)
    assert sum(p.numel() for p in net.parameters()) == 151_277_313  # ViT-B/32 of OpenAI
    assert detect(net.net.state_dict()) == config


def test_other_architectures_are_refused_with_advice():
    with pytest.raises(ValueError, match="no.* CLIP with ViT towers.*ViT-B-32 of OpenCLIP"):
        detect({"visual.conv1.weight": torch.zeros(8, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError):
        build(tiny.CLIP, {})


def test_the_activation_matters():
    tensors = golden.weights("osasis_train", "clip.")
    case = golden.load_case("osasis_train")
    with torch.no_grad():
        case.check("clip_style_A", build(GOLDEN, tensors).embed(case.inputs["style_A"]))
        with pytest.raises(AssertionError, match="off by"):
            case.check("clip_style_A", build(replace(GOLDEN, quick_gelu=False), tensors).embed(case.inputs["style_A"]))


# --- pictures ----------------------------------------------------------------------------------------------------
def test_the_osasis_preprocessing_is_nearest_and_nothing_else():
    net, x = tiny.clip(), tiny.pictures(2, px=48)
    found = net.preprocess(x)
    index = (torch.arange(32) * 48 / 32).long()
    assert torch.equal(found, x[:, :, index][:, :, :, index])
    assert set(found.flatten().tolist()) <= set(x.flatten().tolist())
    assert torch.equal(net.preprocess(found), found)


def test_the_openai_preprocessing_smooths_and_normalises():
    net = tiny.clip()
    flat = torch.full((1, 3, 48, 48), 0.5)
    assert torch.allclose(net.preprocess(flat, "openai"), torch.full((1, 3, 32, 32), (0.75 - 0.5) / 0.25), atol=1e-5)
    board = (torch.arange(128)[:, None] + torch.arange(128)).remainder(2).float() * 2 - 1
    small = net.preprocess(board.expand(1, 3, 128, 128), "openai")[..., 2:-2, 2:-2]
    assert small.abs().max() < 0.2 and net.preprocess(board.expand(1, 3, 128, 128)).abs().min() == 1
    same = tiny.pictures(1)
    assert torch.allclose(net.preprocess(same, "openai"), ((same + 1) / 2 - 0.5) / 0.25, atol=1e-6)


def test_openai_statistics_are_the_default():
    net = Clip(replace(tiny.CLIP, mean=clip_module.OPENAI_MEAN, std=clip_module.OPENAI_STD))
    grey = torch.tensor(clip_module.OPENAI_MEAN)[:, None, None].expand(1, 3, 32, 32) * 2 - 1
    assert net.preprocess(grey, "openai").abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), [
    ((64, 64), (32, 32)), ((37, 53), (224, 224)), ((301, 199), (64, 31)), ((17, 200), (33, 41)), ((9, 7), (9, 7)),
    ((5, 5), (1, 1)), ((1, 3), (4, 2))])
def test_resizing_and_its_gradient_are_those_of_torch(mode, source, target):
    """Of random pictures, smaller and larger, of odd sizes; down along one side and up along the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, *source, generator=generator).requires_grad_(True)
    found = ops.resize(x, target, mode)
    expected = F.interpolate(x, target, mode=mode, antialias=True, align_corners=False)
    assert found.shape == expected.shape and (found - expected).abs().max() <= 5e-6
    weights = torch.randn(found.shape, generator=generator)
    gradient, expected = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected))
    assert (gradient - expected).abs().max() <= 5e-6 * max(1.0, float(expected.abs().max()))


# --- packages ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("package", packages.MINIMUM)
def test_a_missing_package_is_named_with_the_version_that_is_needed(monkeypatch, package):
    monkeypatch.setattr(packages, "installed_version", lambda name: None)
    with pytest.raises(ImportError, match=f"{package} could not be imported .*pip install '{package}>=") as error:
        packages.package_module("no_such_module", package)
    assert f">={packages.MINIMUM[package]}'" in str(error.value)


@pytest.mark.parametrize(("installed", "said"), [("2.31.9", "is too old"), ("2.4", "is too old"), ("2.32", ""),
                                                 ("2.32.0.dev1", ""), ("2.100", ""), ("3", "")])
def test_versions_are_compared_as_numbers(monkeypatch, installed, said):
    monkeypatch.setattr(packages, "installed_version", lambda name: installed)
    if not said:
        assert packages.package_module("json", "open_clip_torch") is json
        return
    with pytest.raises(ImportError, match=f"open_clip_torch {installed} {said}. .* 2.32 or newer"):
        packages.package_module("json", "open_clip_torch")


def test_a_package_that_breaks_on_import_is_named(tmp_path, monkeypatch):
    """As a torchvision that was built for another torch does."""
    (tmp_path / "broken_vision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="lpips could not be imported .operator torchvision::nms .* fits your torch"):
        packages.package_module("broken_vision", "lpips")


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(ValueError, match="CLIP preprocessing is 'best'; take one of osasis, openai, mmfs"):
        tiny.clip().preprocess(tiny.pictures(1), "best")


def test_embeddings_are_of_one_row_each_and_differ_by_preprocessing():
    net, x = tiny.clip(), tiny.pictures(3)
    with torch.no_grad():
        found = net.embed(x)
        assert found.shape == (3, 24) and torch.allclose(found[1:2], net.embed(x[1:2]), atol=1e-5)
        assert not torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-2)  # not normalised
        assert not torch.allclose(found, net.embed(x, "openai"), atol=1e-2)


def test_gradients_pass_through_to_the_picture():
    x = tiny.pictures(1).requires_grad_(True)
    tiny.clip().embed(x).sum().backward()
    assert x.grad.abs().sum() > 0


# --- words -------------------------------------------------------------------------------------------------------
def test_words_become_ids_between_a_start_and_the_highest_id():
    tokenizer = WordTokenizer(tiny.WORDS, 8)
    rows = tokenizer(["Red, FACE!", "photo"])
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 5, 3, 6, 0, 0, 0, 0], [1, 4, 6, 0, 0, 0, 0, 0]]
    assert int(rows.max()) == len(tiny.WORDS) + 2 < tiny.CLIP.vocabulary


def test_unknown_words_are_left_out_long_texts_cut_and_a_text_of_none_refused():
    tokenizer = WordTokenizer(tiny.WORDS, 5)
    assert tokenizer(["a red banana face"]).tolist() == [[1, 5, 3, 6, 0]]
    assert tokenizer(["red red red red red red"]).tolist() == [[1, 5, 5, 5, 6]]
    for text in ("banana", "", "!?"):
        with pytest.raises(ValueError, match="does not know .*; it knows: cartoon, face, photo, red. Use"):
            tokenizer(["red", text])


def test_text_embeddings_come_from_the_words():
    net = tiny.clip()
    with torch.no_grad():
        a, b, c = net.embed_text(["red face", "RED  face.", "face red"])
    assert a.shape == (24,) and torch.allclose(a, b) and not torch.allclose(a, c, atol=1e-3)


def test_a_large_clip_uses_byte_pairs_without_the_network(monkeypatch):
    def no_network(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    rows = build(GOLDEN, golden.weights("osasis_train", "clip.")).tokenizer()(["a smiling face"])
    assert rows.shape == (1, 77) and rows[0, :5].tolist() == [49406, 320, 9200, 1710, 49407]


# --- training the small model ------------------------------------------------------------------------------------
CLASSES = ("photo", "big ears", "oil")


def small_captions(classes=CLASSES):
    words = captions.word_list(classes)
    config = training.small_config(words)
    return captions.all_captions(classes, WordTokenizer(words, config.context)), words, config


def texts_of(tokens, words):
    return [" ".join(words[i - 2] for i in row.tolist() if 1 < i < len(words) + 2) for row in tokens]


def true_columns(count, *columns):
    true = torch.zeros(count, len(CLASSES) + len(captions.MOODS) + len(labels.WORDS), dtype=torch.bool)
    true[:, list(columns)] = True
    return true


def test_every_caption_has_only_words_of_the_list():
    assert captions.class_word("vector_big-ears") == "big ears"
    assert captions.class_word("ink_wash_style") == "wash style"
    found, words, config = small_captions()
    assert words == tuple(sorted(set(words))) and words == captions.word_list(CLASSES)
    assert {"dark", "vivid", "blue", "hair", "glasses", "fedora", "smiling", "painting", "photograph"} <= set(words)
    assert found.starts.shape[:-1] == (4, 2, len(captions.MOODS) + 1, len(captions.TEMPLATES))
    assert found.phrases.shape[:-1] == (len(labels.WORDS) + 1, 2)
    assert int(found.starts.max()) <= len(words) + 1 == config.vocabulary - 2 and not found.phrases[-1].any()
    assert captions.caption("photo", "", "a {}") == "a photo" and captions.caption("x", "dark", "{}", "y") == "dark x y"
    with pytest.raises(ValueError, match="captions have up to .* tokens, and the model reads 12: raise its context"):
        captions.all_captions(CLASSES, WordTokenizer(words, 12))


def test_the_demo_model_stays_small():
    classes = ["photo", *(f"class{i}" for i in range(25))]
    with torch.device("meta"):
        net = Clip(training.small_config(captions.word_list(classes)))
        finer = Clip(training.small_config(captions.word_list(classes), patch=8))
    assert all(sum(p.numel() for p in x.parameters()) < 1_930_000 + 300_000 for x in (net, finer))
    with pytest.raises(ValueError, match="patch is 12; take one that divides 128, such as 8"):
        training.small_config(("a",), 128, 12)


def test_half_of_a_batch_stays_sharp():
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = training.moved(x, Augmentations(8, 0.12, 0.05), torch.Generator().manual_seed(0))
    exact = torch.minimum((found - x).abs().amax((1, 2, 3)), (found - x.flip(3)).abs().amax((1, 2, 3))) < 1e-4
    assert exact.tolist() == [False] * 4 + [True] * 4


def test_captions_are_what_the_tokenizer_makes_of_their_text():
    found, words, config = small_captions()
    column = [word for _, word in labels.WORDS].index("a beanie")
    said = captions.say(found, true_columns(64, 2, len(CLASSES), len(CLASSES) + len(captions.MOODS) + column),
                        torch.Generator().manual_seed(0))
    texts = texts_of(said.tokens, words)
    assert torch.equal(said.tokens, WordTokenizer(words, config.context)(texts))
    assert len(set(texts)) > 30 and any("dark oil" in t for t in texts) and any("wearing a beanie" in t for t in texts)
    for text, row in zip(texts, said.words.bool(), strict=True):
        assert bool(row[2]) == ("oil" in text) and bool(row[len(CLASSES)]) == ("dark" in text)
        assert bool(row[-len(labels.WORDS) + column]) == ("beanie" in text)
        assert row.any() and int(row.sum()) <= 3
    again = captions.say(found, true_columns(64, 2), torch.Generator().manual_seed(0))
    assert all("oil" in text for text in texts_of(again.tokens, words))  # nothing else is known: the class is said


def test_a_caption_is_true_untrue_or_unknown_of_a_picture():
    said = captions.Said(torch.zeros(3, 1), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]]))
    true = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    untrue = torch.tensor([[0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    match, unknown = captions.truth(said, true, untrue)
    assert match.tolist() == [[True, False, False], [True, True, False]]
    assert unknown.tolist() == [[False, True, False], [False, False, True]]


def test_moods_are_measured():
    flat = {"dark": (0.1,) * 3, "bright": (0.9,) * 3, "gray": (0.5,) * 3, "warm": (0.8, 0.5, 0.3),
            "blue": (0.2, 0.4, 0.8), "cold": (0.2, 0.4, 0.8), "vivid": (0.9, 0.1, 0.1), "red": (0.9, 0.1, 0.1),
            "white": (1.0,) * 3}
    for mood, colour in flat.items():
        scores = captions.mood_scores(torch.tensor(colour)[None, :, None, None].expand(1, 3, 48, 64) * 2 - 1)
        assert scores.shape == (1, len(captions.MOODS)) and scores[0, captions.MOODS.index(mood)] > 0, mood
    for first, second in captions.OPPOSITES[:3]:
        x = torch.rand(200, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 32, 32) * 2 - 1
        both = captions.mood_scores(x)[:, [captions.MOODS.index(first), captions.MOODS.index(second)]] > 0
        assert not both.all(1).any() and both.any(0).all()


def test_changes_do_what_they_say():
    x = tiny.pictures(2) * 0.5

    def changed(index):
        return captions.changed(x, torch.full((2,), index))

    plain, dark, bright, warm, cold, gray, vivid = map(changed, range(7))
    assert torch.equal(plain, x) and dark.mean() < x.mean() < bright.mean()
    assert warm[:, 0].mean() > cold[:, 0].mean() and warm.abs().max() <= 1
    assert gray.std(1).max() < 1e-6 < x.std(1).mean() < vivid.std(1).mean()
    mixed = captions.changed(x, torch.tensor([0, 5]))
    assert torch.equal(mixed[0], x[0]) and torch.equal(mixed[1], gray[1])
    for i, name in enumerate(captions.COLOURS, 7):
        scores = captions.mood_scores(changed(i)) - captions.mood_scores(x)
        assert name == "white" or scores[:, captions.MOODS.index(name)].min() >= 0, name


def test_recoloured_pictures_keep_no_colour_of_their_labels(tmp_path):
    labels.write(tmp_path, {"a.png": ("green hair", "beanie")})
    facts, index = captions.facts_of([tmp_path / "a.png", tmp_path / "b.png"], lambda path: 1, 2)
    x = tiny.pictures(2)
    rows = torch.tensor([index(tmp_path / "a.png")] * 2)
    true, untrue = training.known(facts, rows, x, torch.tensor([False, True]))
    named = [word for _, word in labels.WORDS]
    offset = 2 + len(captions.MOODS)
    assert true[:, offset + named.index("green hair")].tolist() == [True, False]
    assert untrue[:, offset + named.index("red hair")].tolist() == [True, False]
    assert true[:, offset + named.index("a beanie")].all() and true[:, 1].all() and untrue[:, 0].all()
    assert index(tmp_path / "b.png") != index(tmp_path / "a.png")
    blank = facts.true[index(tmp_path / "b.png")]
    assert blank.sum() == 1 and not facts.untrue[index(tmp_path / "b.png"), 2:].any()


def test_the_contrast_has_its_closed_form_shares_matches_and_leaves_out_the_unknown():
    a = torch.eye(3)
    own = torch.eye(3) > 0
    expected = -torch.log_softmax(torch.tensor([4.0, 0.0, 0.0]), 0)[0]
    assert training.contrast(a, 7 * a, torch.tensor(4.0), own).item() == pytest.approx(float(expected), rel=1e-5)
    every = torch.ones(3, 3, dtype=torch.bool)
    uniform = training.contrast(torch.ones(3, 2), torch.ones(3, 2), torch.tensor(4.0), every)
    assert uniform.item() == pytest.approx(float(torch.tensor(3.0).log()), rel=1e-5)
    assert training.contrast(a, a.roll(1, 0), torch.tensor(4.0), own) > 3
    assert training.contrast(a, a.roll(1, 0), torch.tensor(4.0), own, ~own).item() == pytest.approx(0, abs=1e-6)


class Oracle:
    """Embeds a text by its words, and a picture by those of its text."""

    def __init__(self, words):
        self.words = {word: i for i, word in enumerate(words)}

    def embed_text(self, texts):
        rows = torch.zeros(len(texts), len(self.words)) + 1e-6
        for row, text in zip(rows, texts, strict=True):
            row[[self.words[w] for w in WordTokenizer.words_of(text) if w not in ("a", "with", "of", "person")]] = 1
        return rows


def test_zero_shot_accuracy_counts_by_class_and_in_all():
    net = Oracle(captions.word_list(("night", "day", "none")))
    pictures = F.normalize(net.embed_text(["night", "night", "night", "day"]), dim=1)
    found = training.zero_shot_accuracy(net, pictures, torch.tensor([0, 0, 1, 1]), ("night", "day", "none"))
    assert found == {"night": 1.0, "day": 0.5, "all": 0.75}


def test_choices_count_the_right_words_of_each_group_alike():
    net = Oracle(captions.word_list(CLASSES))
    said = ["dark baby", "dark baby", "dark child", "smiling", "photo"]
    pictures = F.normalize(net.embed_text(said), dim=1)
    names = [*captions.MOODS, *(word for _, word in labels.WORDS)]
    true = torch.zeros(5, len(names), dtype=torch.bool)
    for row, word in enumerate(("baby", "baby", "toddler", "smiling")):
        true[row, names.index(word)] = True
    assert retrieval.choices(net, pictures, true) == {"age": 0.5, "expression": 1.0}  # two babies, no toddler


def test_recall_of_perfect_and_of_wrong_embeddings(tmp_path):
    texts, words, _ = small_captions()
    values = ["beanie", "fedora", "surprised", "full beard"]
    labels.write(tmp_path, {f"{i}.png": (value,) for i, value in enumerate(values)} | {"4.png": ("asian",)})
    paths = [tmp_path / f"{i}.png" for i in range(6)]  # the last two have the same caption: no word says "asian"
    facts, index = captions.facts_of(paths, lambda path: 0, len(CLASSES))
    rows = torch.tensor([index(path) for path in paths])
    net = Oracle(words)
    right = F.normalize(net.embed_text(retrieval.whole_captions(facts, texts, 0)), dim=1)[rows]
    found = retrieval.recall(net, right, rows, facts, texts)
    assert found["picture to text @1"] == found["text to picture @1"] == 1
    assert found["text to text @1"] == pytest.approx(0.8)  # "photo" is not its "photograph"
    assert found["captions"] == 5 and found["pictures"] == 6
    wrong = retrieval.recall(net, right, rows.roll(2), facts, texts)
    assert wrong["picture to text @1"] == 0 and wrong["picture to text @5"] == 1
