"""The survey's tree as data: nothing is missing, nothing is named twice, every reference leads
somewhere."""

import re

import pytest

from vtlite import taxonomy
from vtlite.methods import METHODS
from vtlite.storage import VTError
from vtlite.taxonomy import (
    BACKBONES,
    DIRECTIONS,
    GROUPS,
    LEAVES,
    SYSTEMS,
    find_system,
    nearest_implemented,
    status,
    systems,
)

# Typed from the survey: leaf -> (systems that have a file, systems that are described only)
SURVEY = {
    "finetuning": (
        (
            "Full fine-tuning|Linear probing|MLP head|Partial|Layer-wise learning-rate"
            " decay|LP-FT|L2-SP|Gradual unfreezing|WiSE-FT|Normalisation-only tuning"
        ),
        "",
    ),
    "prompt/vision": (
        "VPT-shallow|VPT-deep|VP|EVP|PGN|Pro-tuning|LPT|NOAH|S-Prompting",
        "DePT|ZegCLIP|ACT|PViT|TeCoA|ProSFDA|APT|PAT|PointCLIP|P2P|PromptGen|FPTrans|FRPT|RePro|ViLD|LION",
    ),
    "prompt/language": (
        "CoOp|CoCoOp|ProGrad|PLOT|LASP|DualCoOp|SgVA-CLIP",
        "SubPT|MPA|ZegOT|X-CLIP|Berg et al.|PTP|LANIT|CPL|DeFo|GALIP|PointCLIP V2",
    ),
    "prompt/vision_language": ("UPT|DPT|MaPLe|TPT", "MVLPT|MetaPrompt"),
    "adapter/sequential": (
        (
            "Residual adapter (series)|Houlsby adapter|Pfeiffer"
            " adapter|LST|Conv-Adapter|Mona|RepAdapter|DTL|Polyhistor"
        ),
        "EPM|DAN|AMixer|FiT|TINA|BDTL|ViTDet|Florence|SND",
    ),
    "adapter/parallel": (
        (
            "Residual adapter"
            " (parallel)|AdaptFormer|Convpass|ViT-Adapter|ST-Adapter|AIM|CLIP-Adapter|Tip-Adapter|VL-Adapter"
        ),
        "PESF-KD|PEA|CAOA|HA|BALLAD|MAGMA|Hierarchical3D|HyperPELT|SVL-Adapter",
    ),
    "adapter/mix": ("VQT|Consolidator|ETT|FPET", "PATT|PALT|TVG"),
    "parameter/bias": ("BitFit|Side-tuning|AdapterBias|DP-BiTFiT", ""),
    "parameter/weight": (
        (
            "LoRA|DyLoRA|Compacter|PHM"
            " adapter|KAdaptation|FacT-TT|FacT-TK|KronA|DLDR|MoSA|Aurora|DoRA|VeRA"
        ),
        "DnA|PHNNs|TARP",
    ),
    "parameter/both": ("SSF|GPS|SPT", ""),
    "remapping/distillation": (
        "KD|FitNet|Attention transfer|Activation boundaries|Normalised KD|DFA|DKD|RKD",
        "Student|AdaIN",
    ),
    "remapping/weight": ("Net2Wider|Net2Deeper|Block expansion|EAS|N2N|NASH|Path-level EAS", ""),
    "remapping/architecture": ("DARTS|SNAS|P-DARTS|DARTS+|SGAS|MiLeNAS|DARTS-|DATA", "DATA-GS"),
}
EXTRA = {
    *(
        "MLP head",
        "Mona",
        "DTL",
        "FPET",
        "Partial",
        "Layer-wise learning-rate decay",
        "LP-FT",
        "L2-SP",
        "Gradual unfreezing",
        "WiSE-FT",
        "Normalisation-only tuning",
    ),
    *("Houlsby adapter", "Pfeiffer adapter", "Residual adapter (parallel)"),
    *("DoRA", "VeRA", "GPS", "SPT"),
    *("Attention transfer", "DKD", "RKD"),
    "Block expansion",
}
KEYS = [system.key for system in SYSTEMS if system.key]


def test_every_system_of_the_survey_is_there_and_no_other() -> None:
    for leaf, (methods, rows) in SURVEY.items():
        assert [s.name for s in systems(leaf) if s.key] == methods.split("|")
        assert [s.name for s in systems(leaf) if not s.key] == (rows.split("|") if rows else [])
    assert [leaf.path for leaf in LEAVES] == list(SURVEY)
    assert {s.name for s in SYSTEMS if s.extra} == EXTRA
    assert len(SYSTEMS) == sum(
        len(names.split("|")) for pair in SURVEY.values() for names in pair if names
    )


def test_names_and_keys_are_unique() -> None:
    assert len(KEYS) == len(set(KEYS)) >= 80
    assert len({key.rsplit("/", 1)[-1] for key in KEYS}) == len(KEYS)
    assert len({s.name.casefold() for s in SYSTEMS}) == len(SYSTEMS)


def test_every_key_is_a_file_name_in_the_folder_of_its_leaf() -> None:
    for system in SYSTEMS:
        if system.key:
            folder, name = system.key.rsplit("/", 1)
            assert folder == system.leaf
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)


def test_every_leaf_has_at_least_three_methods_and_belongs_to_its_group() -> None:
    for group in GROUPS:
        for leaf in group.leaves:
            assert leaf.path == group.path or leaf.path.startswith(f"{group.path}/")
            assert sum(s.key is not None for s in systems(leaf.path)) >= 3
    assert [group.section for group in GROUPS] == ["3.1", "3.2", "3.3", "3.4", "3.5"]


def test_a_system_has_either_a_key_or_a_nearest_method() -> None:
    for system in SYSTEMS:
        assert (system.key is None) != (system.nearest is None)
        assert system.nearest is None or system.nearest in KEYS


def test_every_idea_is_one_sentence_in_plain_characters() -> None:
    for system in SYSTEMS:
        assert system.idea.endswith(".")
        assert "\n" not in system.idea
        assert len(system.idea) <= 120
        assert (system.name + system.idea + system.paper).isascii()


def test_papers_and_years_agree_with_their_arxiv_numbers() -> None:
    for system in SYSTEMS:
        assert bool(system.paper) == bool(system.venue) == bool(system.year)
        if system.arxiv:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", system.arxiv)
            assert 1 <= int(system.arxiv[2:4]) <= 12
            submitted = 2000 + int(system.arxiv[:2])
            assert system.year is not None
            assert -1 <= system.year - submitted <= 3, (
                system
            )  # a workshop may come before arXiv, a journal years after it
        if system.venue == "arXiv":
            assert system.arxiv
            assert system.year == 2000 + int(system.arxiv[:2])


def test_one_arxiv_number_is_one_paper() -> None:
    titles: dict[str, set[str]] = {}
    for system in SYSTEMS:
        if system.arxiv:
            titles.setdefault(system.arxiv, set()).add(system.paper.partition(" (")[0])
    assert all(len(found) == 1 for found in titles.values())


def test_a_system_without_a_known_paper_claims_nothing() -> None:
    unknown = {s.name for s in SYSTEMS if not s.paper}
    assert unknown == {s.name for s in SYSTEMS if s.idea == taxonomy.UNIDENTIFIED}
    assert all(find_system(name).key is None for name in unknown)


def test_implemented_methods_are_in_the_taxonomy_and_in_its_folders() -> None:
    assert set(METHODS) <= set(KEYS)
    for key, cls in METHODS.items():
        assert cls.__module__ == "vtlite.methods." + key.replace("/", ".")


def test_status_and_nearest() -> None:
    assert status(find_system("lora")) == "implemented"
    assert status(find_system("MAGMA")) == "row"
    assert nearest_implemented(find_system("lora")) == "parameter/weight/lora"
    assert nearest_implemented(find_system("DnA")) == "parameter/weight/lora"
    for system in SYSTEMS:
        assert (status(system) == "implemented") == (system.key in METHODS)
        assert (
            nearest_implemented(system) in METHODS
        )  # every group has a method, so there is always one to look at


@pytest.mark.parametrize("name", ["lora", "LoRA", "parameter/weight/lora"])
def test_a_system_is_found_by_key_short_name_and_name(name: str) -> None:
    assert find_system(name).key == "parameter/weight/lora"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(VTError, match="unknown method 'lorra': did you mean 'lora'"):
        find_system("lorra")
    with pytest.raises(VTError, match="unknown group 'adaptor': did you mean 'adapter'"):
        systems("adaptor")


def test_a_group_is_the_sum_of_its_leaves() -> None:
    for group in GROUPS:
        assert systems(group.path) == tuple(s for leaf in group.leaves for s in systems(leaf.path))
    assert systems() == SYSTEMS == tuple(s for group in GROUPS for s in systems(group.path))


def test_backbones_and_directions() -> None:
    assert list(BACKBONES) == ["CNN", "Transformer", "hybrid", "two-tower"]
    named = ", ".join(survey for survey, _ in BACKBONES.values()).split(", ")
    assert {"ResNet", "ViT", "Swin", "CLIP", "X3D", "VOLO"} <= set(named)
    assert len(named) == 8 + 8 + 3 + 1
    assert len(DIRECTIONS) == 4
