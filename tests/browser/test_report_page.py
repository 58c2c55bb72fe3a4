"""The report in a real browser: no errors, no requests, readable on a phone and on a desk."""

from pathlib import Path

import pytest

from fakedet.cli.app import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for name in ("bce", "supcon"):
        assert launch("train", [f"model={name}", f"data.manifest={tiny_manifest_module}", "data=manifest",
                                "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
                                "bootstrap.resamples=30", "stage1_cache=null",
                                f"output_dir={root}/{name}"]) == 0  # fmt: skip
    files = ",".join(f"{root}/{name}/predictions.parquet" for name in ("bce", "supcon"))
    assert launch("report", [f"predictions=[{files}]", "bootstrap.resamples=30", f"output_dir={root}/r"]) == 0
    return root / "r" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_report_can_be_read(report: Path, browser, watch, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watch.follow(page)
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    assert watch.errors == []
    assert watch.outside == []
    # Nothing makes the page itself scroll sideways; wide tables scroll in their own frame.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 8
    sizes = "[...document.querySelectorAll('p, td, th, figcaption')].map(e => getComputedStyle(e).fontSize)"
    assert min(float(size.removesuffix("px")) for size in page.evaluate(sizes)) >= 11
    assert page.evaluate("[...document.querySelectorAll('details')].some(e => e.open)") is False
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    # Type of 9 points in a figure of 220 dots an inch has 11 pixels at this scale.
    scales = "[...document.querySelectorAll('.figures img')].map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    assert min(page.evaluate(scales)) >= 11 / (9 / 72 * 220) - 0.005
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hint = "e => getComputedStyle(e, '::before').display !== 'none' && e.scrollWidth > e.clientWidth"
    hidden = "e => getComputedStyle(e, '::before').display === 'none' && e.scrollWidth > e.clientWidth + 1"
    tables = "[...document.querySelectorAll('.scroll')]"
    assert page.evaluate(f"{tables}.filter({hidden}).length") == 0, "every table that scrolls says so"
    assert width > 400 or page.evaluate(f"{tables}.some({hint})")
    assert contrast(page, "td") > 4.5
    assert contrast(page, ".soft") > 4.5
    page.close()


def contrast(page, selector: str) -> float:
    """Give the ratio of luminances of text and page, as WCAG defines it."""
    colours = page.evaluate(
        "selector => [getComputedStyle(document.querySelector(selector)).color,"
        " getComputedStyle(document.body).backgroundColor]", selector
    )  # fmt: skip
    values = []
    for colour in colours:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        values.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    low, high = sorted(values)
    return (high + 0.05) / (low + 0.05)
