"""The controls of notebook 07: ipywidgets around `explore.Explorer`, every callback a plain method."""

import base64
import html
import io

from thyroid_lib import frames
from thyroid_lib.common.messages import printable
from thyroid_lib.explanation.explore import Choice, Explorer, View, changes

MOVED = ("threshold", "closing", "method", "layer", "explain", "gain", "cover")  # controls that are a Choice


class Panel:
    """The controls of notebook 07 around an `Explorer`; `Panel(explorer).box` is the widget to display.

    Attributes:
        controls: name -> widget: image, path, upload, threshold, closing, method, layer, explain, gain, cover.
        view: the last `View`, or None while the image cannot be used.
    """

    def __init__(self, explorer: Explorer, choice: Choice | None = None):
        import ipywidgets as w

        from thyroid_lib import network
        from thyroid_lib.explanation import cam

        self.explorer, self.view, self._held = explorer, None, False
        choice = choice or explorer.start
        names = explorer.classifier.names
        wide = {"style": {"description_width": "7rem"}, "layout": w.Layout(width="24rem")}
        types = [("the named type", ""), *((f"{en} {zh}", key) for key, (en, zh) in names.items())]
        layers = list(dict.fromkeys([choice.layer, *network.STAGES]))
        shown = explorer.name if explorer.name in explorer.images else None
        self.controls = {
            "image": w.Dropdown(options=explorer.images, value=shown, description="Image", **wide),
            "path": w.Text(placeholder="path of a file, then Enter", description="File",
                           continuous_update=False, **wide),
            "upload": w.FileUpload(description="Upload an image", **wide),
            "threshold": w.IntSlider(choice.threshold, 1, 80, description="Threshold", **wide),
            "closing": w.IntSlider(choice.closing, 0, 61, description="Closing, px", **wide),
            "method": w.Dropdown(options=cam.METHODS, value=choice.method, description="Map", **wide),
            "layer": w.Dropdown(options=layers, value=choice.layer, description="Layer", **wide),
            "explain": w.Dropdown(options=types, value=choice.explain, description="Explain", **wide),
            "gain": w.FloatSlider(choice.gain, min=0.4, max=2.5, step=0.05, description="Gain, factor", **wide),
            "cover": w.Checkbox(choice.cover, description="Cover the nodule", **wide),
            "reset": w.Button(description="Reset", tooltip="Recipe of training, nothing changed", **wide),
        }  # fmt: skip
        self.picture = w.HTML()
        self.words = w.HTML()
        for name in MOVED:
            self.controls[name].observe(self._update, "value")
        self.controls["image"].observe(lambda change: self._open(change["new"], "image"), "value")
        self.controls["path"].observe(lambda change: self._open(change["new"], "path"), "value")
        self.controls["upload"].observe(self._uploaded, "value")
        self.controls["reset"].on_click(self._reset)
        left = w.VBox(list(self.controls.values()))
        right = w.VBox([self.words, self.picture], layout=w.Layout(flex="1 1 30rem", min_width="0"))
        self.box = w.HBox([left, right], layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
        self._update()

    def _open(self, source, chosen_by: str = "upload") -> None:
        if not source:
            return
        for name, empty in (("image", None), ("path", "")):
            if name != chosen_by:
                self.controls[name].value = empty  # so that choosing the same again counts as a choice
        try:
            self.explorer.open(source)
        except (frames.FrameError, OSError) as error:
            self._show(f"<b>This image cannot be used:</b> {html.escape(printable(error))}")
            return
        self._update()

    def _uploaded(self, change) -> None:
        if change["new"]:
            file = change["new"][0]
            self._open((file["name"], file["content"]))

    def _reset(self, _=None) -> None:
        self._held = True  # one update for all controls, not one each
        start = self.explorer.start
        for name in MOVED:
            self.controls[name].value = getattr(start, name)
        self._held = False
        self._update()

    def _update(self, _=None) -> None:
        if self._held or self.explorer.frame is None:
            return
        try:
            self.view = self.explorer.look(Choice(**{name: self.controls[name].value for name in MOVED}))
        except frames.FrameError as error:
            self.view = None
            self._show(f"<b>Nothing to classify:</b> {html.escape(printable(error))}")
            return
        names = self.explorer.classifier.names
        self._show(_words(self.view, names), _rendered(self.view, names))

    def _show(self, text: str, picture: str = "") -> None:
        self.picture.value = picture
        self.words.value = f'<div role="status" aria-live="polite">{text}</div>'


def _rendered(view: View, names) -> str:
    import matplotlib.pyplot as plt

    from thyroid_lib.plots.explore import steps_to_answer

    figure = steps_to_answer(view, names)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(printable(figure.alt))
    return f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'


def _words(view: View, names) -> str:
    english, chinese = (html.escape(name) for name in names[view.answer.lesion_type])
    text = f"<b>{english}</b> <span lang='zh'>{chinese}</span> {view.answer.probabilities[view.answer.lesion_type]:.2f}"
    if view.truth in names:
        text += f" (reference standard: {html.escape(names[view.truth][0])})"
    text += f"<br>{html.escape(printable(view.name))}; change to the crop: {changes(view)}"
    for warning in view.answer.warnings:
        text += f"<br>⚠ {html.escape(printable(warning))}"
    return text
