"""Makes the pictures of `edl dashboard` in docs/, of a page that is there (`edl demo cluster`).

python docs/_hooks/screenshots.py http://127.0.0.1:8600/
"""

import sys
import time
from pathlib import Path

DOCS = Path(__file__).parents[1]
sys.path.append(str(DOCS.parent / "benchmarks"))


def main(url):
    """Both pictures, light and dark."""
    from dashboard import browser

    page = browser(1240, 700)
    try:
        for theme in ("light", "dark"):
            page.set_window_size(1240, 700)
            page.get(url)
            page.execute_script("localStorage.setItem('edl-theme', arguments[0])", theme)
            page.refresh()
            time.sleep(3)
            height = page.execute_script("return document.documentElement.scrollHeight")
            page.set_window_size(1240, height + 143)  # beside the window's own
            time.sleep(1)
            page.save_screenshot(str(DOCS / f"dashboard-{theme}.png"))
    finally:
        page.quit()


if __name__ == "__main__":
    main(sys.argv[1])
