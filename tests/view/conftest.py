"""A real browser without a window, and services that are played."""

import os
import shutil
import sys

import pytest

from tests.support.processes import ROOT

sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="package")
def chromium():
    """Chromium, started once. Skipped where it is not installed, but not in CI."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are not installed: scripts/system-packages")
        pytest.skip("chromium and chromedriver are not installed: scripts/system-packages")
    from dashboard import browser

    page = browser()
    yield page
    page.quit()
