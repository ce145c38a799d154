"""The controls of notebook 07: ipywidgets around `explore.Explorer`, every callback a plain method."""

import html
from dataclasses import asdict

import ipywidgets as w
import matplotlib.pyplot as plt
from IPython.core.pylabtools import print_figure

from thyroid_lib import frames, network
from thyroid_lib.common.messages import printable
from thyroid_lib.explanation import cam
from thyroid_lib.explanation.explore import Choice, Explorer
from thyroid_lib.plots.explanation import steps_to_answer


class Panel:
    """The controls of notebook 07 around an `Explorer`; `Panel(explorer).box` is the widget to display.

    Attributes:
        controls: name -> widget: image, path, upload, threshold, closing, method, layer, explain, gain, cover, reset.
        view: the last `explore.View`, or None while the image cannot be used.
    """

    def __init__(self, explorer: Explorer, choice: Choice | None = None):
        self.explorer, self.view, self._held = explorer, None, False
        choice = choice or explorer.choice()
        names = explorer.classifier.names
        wide = {"style": {"description_width": "7rem"}, "layout": w.Layout(width="24rem")}
        types = [("the named type", ""), *((" ".join(pair), key) for key, pair in names.items())]
        layers = list(dict.fromkeys([choice.layer, *network.STAGES]))
        shown = explorer.name if explorer.name in explorer.images else None
        self.controls = {
            "image": w.Dropdown(options=explorer.images, value=shown, description="Image", **wide),
            "path": w.Text(placeholder="path of a file, then Enter", description="File",
                           continuous_update=False, **wide),
            "upload": w.FileUpload(description="Upload an image", **wide),
            "threshold": w.IntSlider(choice.threshold, 1, 80, description="Threshold", **wide),
            "closing": w.IntSlider(choice.closing, 0, 61, description="Closing, px", **wide),
            "method": w.Dropdown(options=list(cam.METHODS), value=choice.method, description="Map", **wide),
            "layer": w.Dropdown(options=layers, value=choice.layer, description="Layer", **wide),
            "explain": w.Dropdown(options=types, value=choice.explain, description="Explain", **wide),
            "gain": w.FloatSlider(choice.gain, min=0.4, max=2.5, step=0.05, description="Gain, factor", **wide),
            "cover": w.Checkbox(choice.cover, description="Cover the nodule", **wide),
            "reset": w.Button(description="Reset", tooltip="Recipe of training, nothing changed", **wide),
        }  # fmt: skip
        self.picture, self.words = w.HTML(), w.HTML()
        for name in ("image", "path", "upload"):
            self.controls[name].observe(self._open, "value")
        for name in asdict(choice):
            self.controls[name].observe(self._update, "value")
        self.controls["reset"].on_click(self._reset)
        left = w.VBox(list(self.controls.values()))
        right = w.VBox([self.words, self.picture], layout=w.Layout(flex="1 1 30rem", min_width="0"))
        self.box = w.HBox([left, right], layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
        self._update()

    def _open(self, change) -> None:
        if not (source := change["new"]):
            return
        if not isinstance(source, str):
            source = source[0]["name"], source[0]["content"]
        for name, empty in (("image", None), ("path", "")):
            if self.controls[name] is not change["owner"]:
                self.controls[name].value = empty  # so that choosing the same again counts as a choice
        try:
            self.explorer.open(source)
        except (frames.FrameError, OSError) as error:
            self._show(f"<b>This image cannot be used:</b> {html.escape(printable(error))}")
            return
        self._update()

    def _reset(self, _) -> None:
        self._held = True  # one update for all controls, not one each
        for name, value in asdict(self.explorer.choice()).items():
            self.controls[name].value = value
        self._held = False
        self._update()

    def _update(self, _=None) -> None:
        if self._held or self.explorer.frame is None:
            return
        values = {name: self.controls[name].value for name in Choice.__dataclass_fields__}
        try:
            self.view = self.explorer.look(Choice(**values))
        except frames.FrameError as error:
            self.view = None
            self._show(f"<b>Nothing to classify:</b> {html.escape(printable(error))}")
            return
        names = self.explorer.classifier.names
        figure = steps_to_answer(self.view, names)
        data = print_figure(figure, dpi=110, bbox_inches=None, base64=True)
        plt.close(figure)
        alt = html.escape(printable(figure.alt))
        picture = f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'
        self._show(self.view.words("panel.html.j2", names=names), picture)

    def _show(self, text: str, picture: str = "") -> None:
        self.words.value = f'<div role="status" aria-live="polite">{text}</div>'
        self.picture.value = picture
