"""Licences as cards and files say them, and which cannot be had together."""

from pathlib import Path

import pytest

from evox_evogm.command.licences import (
    LicenceReport,
    Part,
    check_licences,
    find_conflicts,
    part_of,
    read_licence,
    reading,
)

REPOSITORY = Path(__file__).parents[2]


def card(folder, metadata, name="README.md"):
    (folder / name).write_text(f"---\n{metadata}\n---\n\n# An adapter\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: MIT", "mit"),
        ("license: [cc-by-4.0]", "cc-by-4.0"),
        ("license: [mit, gpl-3.0]", None),
        ("license: other\nlicense_name: Some Licence", "some-licence"),
        ("license: other", None),
        ("license: unknown", None),
        ("license: Unlicensed", None),
        ("license: none", None),
        ("license: other\nlicense_name: none", None),
        ("license: unlicense", "unlicense"),
        ("license: ''", None),
        ("license: 3", None),
        ("library_name: peft", None),
        ("license: [", None),  # no YAML
        ("- a list", None),
    ],
)
def test_the_metadata_of_a_card_are_read(tmp_path, metadata, licence):
    card(tmp_path, metadata)
    assert read_licence(tmp_path) == licence


def test_a_licence_file_counts_where_the_card_says_nothing(tmp_path):
    card(tmp_path, "library_name: peft")
    (tmp_path / "LICENSE").write_text((REPOSITORY / "LICENSE").read_text())
    assert read_licence(tmp_path) == "gpl-3.0"
    card(tmp_path, "license: mit")
    assert read_licence(tmp_path) == "mit"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Apache License\n  Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person", "mit"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("Creative Commons Attribution 4.0 International", "cc-by-4.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991", "gpl-2.0"),
        ("All rights reserved.", None),
    ],
)
def test_known_texts_are_told_apart(tmp_path, text, licence):
    (tmp_path / "LICENSE").write_text(text)
    assert read_licence(tmp_path) == licence


def test_what_is_not_here_has_none_and_the_packaged_base_has_its_own(tmp_path):
    assert read_licence(tmp_path / "nothing") is None
    assert read_licence("") is None
    assert read_licence("no-such-owner/no-such-model") is None
    assert read_licence("/any/cache/smollm2-135m-instruct") == "apache-2.0"


def report_of(*licences):
    parts = [Part(f"p{number}", licence) for number, licence in enumerate(licences)]
    return LicenceReport(tuple(parts), find_conflicts(parts))


@pytest.mark.parametrize(
    ("licences", "merged"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0", "bsd-3-clause"), "apache-2.0"),
        (("apache-2.0", "gpl-3.0"), "gpl-3.0"),
        (("apache-2.0", "llama3.1", "llama3.1"), "llama3.1"),
        (("mit", "cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (("mit", "bsd"), None),  # neither asks for more than the other in all points
        (("gpl-3.0", "agpl-3.0"), None),
        (("mit", "gpl"), "gpl"),
        (("gpl-3.0", "cc-by-sa-4.0"), None),
    ],
)
def test_these_can_be_had_together(licences, merged):
    report = report_of(*licences)
    assert report.conflicts == () and report.sentence() is None
    assert report.licence == merged
    check_licences(report, strict=True)


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        (("gpl-3.0", "cc-by-nc-4.0"), "each ask that a merge is given on under their own terms"),
        (("llama3", "gemma"), "each ask that a merge is given on under their own terms"),
        (("llama3.1", "gpl-3.0"), "each ask that a merge is given on under their own terms"),
        (("gpl-2.0", "apache-2.0"), "GPL 2 forbids the patent terms of Apache 2"),
        (("gpl-2.0", "gpl-3.0"), "each ask"),
        (("mit", "cc-by-nd-4.0"), r"cc-by-nd-4.0 \(p1\) does not allow derivatives"),
        (("mit", None), "the licence of p1 is unknown"),
        (("mit", "epl-2.0"), r"no rule here knows the terms of epl-2.0 \(p1\)"),
        (("proprietary", "mit"), r"no rule here knows the terms of proprietary \(p0\)"),
        (("apache-2.0", "cc"), r"no rule here knows the terms of cc \(p1\)"),
        (("apache-2.0", "gpl"), r"no rule here knows the terms of gpl \(p1\)"),
        (("apache-2.0", "lgpl"), r"no rule here knows the terms of lgpl \(p1\)"),
    ],
)
def test_these_cannot_and_strict_refuses_them(licences, words):
    report = report_of(*licences)
    assert report.licence is None
    check_licences(report, strict=False)
    with pytest.raises(ValueError, match=f"strict_licences: expected .*{words}"):
        check_licences(report, strict=True)


def test_a_name_steers_no_terminal():
    report = report_of("mit", None)
    named = LicenceReport((*report.parts, Part("a\x1b[31m\nb", None)), ())
    assert "\x1b" not in str(named.sentence()) and "\n" not in str(named.sentence())


@pytest.fixture
def no_cards():
    reading._from_hub.cache_clear()
    yield
    reading._from_hub.cache_clear()


def test_the_card_of_a_base_on_the_hub_is_fetched(tmp_path, monkeypatch, no_cards):
    import huggingface_hub

    def download(repository, name, **_):
        assert (repository, name) == ("org/base", "README.md")
        card(tmp_path, "license: llama3.1")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_licence("org/base") == "llama3.1"


def test_a_card_that_cannot_be_had_is_said_to_be_away(tmp_path, monkeypatch, no_cards):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    parts = (part_of("base", "org/base"), part_of("a", tmp_path))
    words = "the licence of base (its card is not on this machine), a is unknown"
    assert LicenceReport(parts).sentence() == words
