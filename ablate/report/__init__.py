"""The report of a study: one self-contained page, and the same tables as Markdown, CSV, LaTeX and JSON.

`contents` builds each table once and `table` writes it in every format; `effects` and `curves` draw; `words`
says in sentences what the numbers mean; `page` puts it together. No statistics: verdicts come with the study.
"""

from pathlib import Path

from ablate.records import StudyView

FIGURES = "figures"


def write(view: StudyView, folder: Path) -> dict[str, Path]:
    """Write everything about a study to `folder`, from what is known now; returns what is where, by kind.

    Every file is replaced as a whole, so that who reads meanwhile sees the old one or the new one.
    """
    from ablate.report import arms, contents, data, drawing, files, page, plots, reproduce, table

    faces = arms.arms(view)
    contrasts = contents.contrasts(view, faces)
    again = reproduce.reproduction(view.plan.registered.run, view.name)
    drawn = [drawing.render(figure) for figure in plots.figures(view, faces)]
    texts = {
        "contrasts.csv": table.to_csv(contrasts),
        "trials.csv": table.to_csv(contents.trials(view, faces)),
        "contrasts.tex": table.to_latex(contrasts),
        "verdicts.json": data.to_json(view, contrasts),
    }
    written = {
        **{f"{FIGURES}/{one.figure.name}.svg": one.svg for one in drawn},
        **{f"{FIGURES}/{one.figure.name}.png": one.png for one in drawn},
        **texts,
        again.path: again.file,
        "report.md": page.markdown(view, faces),
        "report.html": page.html(view, faces, drawn, texts, again),
    }
    for name, content in written.items():
        files.replace(folder / name, content)
    for path in (folder / FIGURES).glob("*.*"):
        if path.stem in plots.NAMES and f"{FIGURES}/{path.name}" not in written:
            path.unlink()  # of an earlier state of the study
    found = {
        "HTML report": "report.html",
        "Markdown": "report.md",
        "CSV": "contrasts.csv",
        "CSV of trials": "trials.csv",
        "LaTeX": "contrasts.tex",
        "JSON": "verdicts.json",
    }
    return {kind: folder / name for kind, name in found.items()} | (
        {"Figures": folder / FIGURES} if drawn else {}
    )
