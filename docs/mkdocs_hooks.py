"""Takes documents that live beside the code into the site, and turns links between files into links between pages."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PROJECTS = ("SynthDrive", "Pretraining", "AdapterComparison", "Benchmarks", "ImageSelection")
PAGES = {
    "README.md": "index.md",
    "datasets/README.md": "data.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "projects/README.md": "projects/index.md",
    **{f"projects/{name}/README.md": f"projects/{name}.md" for name in PROJECTS},
}
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config) -> Files:
    """Add the pages of PAGES."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Point each relative link at the page that its file became; a file that is no page keeps its name alone."""
    sources = {target: source for source, target in PAGES.items()}
    uri = page.file.src_uri
    source = sources.get(uri, f"docs/{uri}")
    return LINK.sub(lambda match: _relink(match, posixpath.dirname(source), posixpath.dirname(uri)), markdown)


def _relink(match: re.Match, source_folder: str, page_folder: str) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return match[0]
    path = posixpath.normpath(posixpath.join(source_folder, target))
    if not (ROOT / path).exists():
        return match[0]  # mkdocs reports it
    page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None:
        return text[1:-1]
    return f"{text}({posixpath.relpath(page, page_folder or '.')}{anchor})"
