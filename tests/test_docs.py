"""What the documents say exists."""

import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from soma_det.config import add_soma_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(p for p in ROOT.rglob("*.md") if not {".venv", "output", "site"} & set(p.relative_to(ROOT).parts))
PATH = re.compile(r"(?<![\w/])((?:configs|tools|soma_det|docs|tests|projects)/[\w/]+\.(?:py|yaml|md|jpg|png))")
COMMAND = re.compile(r"python ((?:tools|projects)/[\w/]+\.py)((?:[^\n]*\\\n)*[^\n]*)")


def leaves(cfg: CfgNode, prefix: str = "") -> set[str]:
    keys = set()
    for key, value in cfg.items():
        keys |= leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key}
    return keys


def test_every_key_that_this_project_adds_is_in_the_settings():
    plain, ours = get_cfg(), get_cfg()
    add_soma_config(ours)
    reference = (ROOT / "docs" / "settings.md").read_text()
    missing = [key for key in leaves(ours) - leaves(plain) if key.rsplit(".", 1)[-1] not in reference]
    assert not missing


def test_every_file_and_link_in_the_documents_exists():
    for document in DOCUMENTS:
        text = document.read_text()
        links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
        paths = re.findall(
            r"(?<![\w/])((?:configs|tools|soma_det|docs|tests|projects)/[\w/]+\.(?:py|yaml|md|jpg|png))", text
        )
        absent = [link for link in links if link and not (document.parent / link).exists()]
        absent += [path for path in paths if not (ROOT / path).exists()]
        assert not absent, (document, absent)


def test_every_option_in_the_documents_commands_is_an_option_of_the_tool():
    for document in DOCUMENTS:
        for tool, arguments in re.findall(
            r"python ((?:tools|projects)/[\w/]+\.py)((?:[^\n]*\\\n)*[^\n]*)", document.read_text()
        ):
            source = (ROOT / tool).read_text() + "--help --config-file --resume --eval-only --num-gpus"
            source += " --num-machines --machine-rank --dist-url"  # Detectron2's
            for option in re.findall(r"\s(--[a-z-]+)", arguments):
                assert option in source, (document.name, tool, option)
