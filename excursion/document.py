"""A document that is Markdown and an HTML page at once: headings, text, tables, figures.

    doc = Document("Title", out / "figures")
    doc.text("It is so."); doc.table(["a", "b"], [["1", "2"]])
    doc.write(out)                                                   # out/report.md, out/report.html

What stands in it may come from any record: names and texts are escaped.
"""

import base64
import html
import io
import re
from pathlib import Path

from excursion.figures import plt
from files import write_bytes, write_text

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1.5em auto; padding: 0 .9em; color: #222; overflow-wrap: break-word }
img { max-width: min(100%, 600px); height: auto } figcaption { color: #555; font-size: 14px } figure { margin: 1em 0 2em }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 10px; align-items: start }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 2px 7px; text-align: left; vertical-align: top }
th { background: #f3f3f3 } td { font-variant-numeric: tabular-nums }
details { margin: .6em 0 } summary { cursor: pointer; font-weight: 600 }
h3 { margin: 1.4em 0 .3em; font-size: 17px }
.claim { display: grid; grid-template-columns: 1.6em 1fr; padding: 3px 0; border-top: 1px solid #eee }
.claim b { font-variant-numeric: tabular-nums; white-space: nowrap } .claim small, .note { color: #666; font-size: 13px }
.v-shown { color: #00795a } .v-contradicted { color: #b84a00 } .v-unclear { color: #666 } .v-not { color: #999 }
.mark { font-weight: 700 }
.right { border-left: 5px solid #009E73 } .wrong { border-left: 5px solid #ccc }
.right, .wrong { padding: 1px 7px; margin: 5px 0; white-space: pre-wrap; font: 12px/1.35 ui-monospace, monospace }
.reader { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 10px }
"""


Panel = tuple[str, "plt.Figure | None", str]  # name of its file, the figure, its alt text


class Document:
    """Collects parts; `markdown` and `page` are the same text twice."""

    def __init__(self, title: str, figures: Path):
        self.title, self.figures = title, figures
        self.markdown, self.page = [f"# {title}", ""], [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.markdown += [f"## {text}", ""]
        self.page.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, note: bool = False) -> None:
        self.markdown += [text, ""]
        marked = re.sub("`(.*?)`", r"<code>\1</code>", html.escape(text))
        self.page.append(f"<p{' class=note' if note else ''}>{marked}</p>")

    def table(self, header: list[str], rows: list[list[str]], fold: str = "", page: str | None = None) -> None:
        """fold: a summary under which the page hides it until it is asked for. page: stands in the page instead."""

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        def row_of(cells: list[str]) -> str:  # in Markdown: a pipe or a line end in a cell would end it
            return "| " + " | ".join(" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells) + " |"

        lines = [row_of(header), "|" + "---|" * len(header), *map(row_of, rows)]
        if page is None:
            page = f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"
        if fold:
            lines = ["<details>", f"<summary>{fold}</summary>", "", *lines, "", "</details>"]
            page = f"<details><summary>{html.escape(fold)}</summary>\n{page}\n</details>"
        self.markdown += [*lines, ""]
        self.page.append(page)

    def panels(self, heading: str, found: list[Panel], caption: str) -> None:
        """Figures side by side where there is room. Those that are None are left out; without any, all is."""
        found = [(name, figure, alt) for name, figure, alt in found if figure is not None]
        if not found:
            return
        if heading:
            self.heading(heading)
        self.figures.mkdir(parents=True, exist_ok=True)
        self.page.append("<figure><div class=panels>")
        for name, figure, alt in found:
            name = re.sub(r"[^\w.@+-]", "_", name)  # sets of questions are named by a record
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight")
            plt.close(figure)
            write_bytes(self.figures / f"{name}.png", buffer.getvalue())
            self.markdown += [f"![{alt}](figures/{name}.png)", ""]
            inline = base64.b64encode(buffer.getvalue()).decode()
            self.page.append(f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{inline}">')
        self.markdown += [f"*{caption}*", ""]
        self.page.append(f"</div><figcaption>{html.escape(caption)}</figcaption></figure>")

    def write(self, folder: Path) -> None:
        write_text(folder / "report.md", "\n".join(self.markdown))
        head = (
            '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{CSS}</style>"
        )
        write_text(folder / "report.html", head + "\n".join(self.page) + "\n")
