"""The pages: links lead somewhere, each page is found from the first, and words are explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GLOSSARY = (DOCS / "glossary.md").read_text(encoding="utf-8")

TYPES = ("ffs/types.py", "ffs/layout.py")
NO_NOUNS = {"id", "info", "state", "type", "index"}
"""Second halves of class names: InodeId, NodeInfo, TargetState, FileType, ChunkIndex."""
SPELT = {"attr": "attributes"}
FIELDS_WORDS = {
    *("sample", "blob", "segment", "chunk", "block", "stripe", "range", "extent", "chain"),
    *("target", "node", "inode", "dentry", "lease", "grant", "ring", "slot"),
}
"""The field's words, which must not go missing even where no type has their name."""


def links(page: Path) -> list[str]:
    """Where a page's links go, without those that leave the repository."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [target for target in found if "://" not in target]


def terms() -> set[str]:
    """What the glossary explains."""
    first_column = re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.MULTILINE)
    return {word.strip() for cell in first_column for word in cell.split(",")}


def public_nouns() -> set[str]:
    """The nouns in the names of the types that both sides speak, ids included."""
    found = set()
    for name in TYPES:
        for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign) and "NewType" in ast.dump(node.value):
                found.update(t.id for t in node.targets if isinstance(t, ast.Name))
    words = {w.lower() for name in found for w in re.findall(r"[A-Z][a-z]+", name)}
    return {SPELT.get(word, word) for word in words - NO_NOUNS}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_first_one() -> None:
    linked = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    missing = [
        page.name for page in DOCS.rglob("*.md") if page not in linked | {DOCS / "README.md"}
    ]
    assert missing == []
    assert "docs/README.md" in links(ROOT / "README.md")


def test_files_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:ffs|client|server|native|bench|tests|docs)/[\w./-]+\.[a-z]+)`")
    for page in PAGES:
        for name in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_glossary_explains_every_public_noun() -> None:
    nouns = public_nouns()
    assert {"inode", "blob", "chunk", "chain", "target", "node", "layout", "routing"} <= nouns
    assert nouns | FIELDS_WORDS <= terms() | {"file"}, sorted((nouns | FIELDS_WORDS) - terms())


def test_glossary_is_sorted_and_says_each_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", GLOSSARY, re.MULTILINE)[2:]
    words = [word for word, _ in rows]
    assert words == sorted(set(words)) and len(words) > 30
    assert all(len(meaning) > 15 for _, meaning in rows)
