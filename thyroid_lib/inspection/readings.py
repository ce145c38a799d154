"""Points at which the invention's text can be read otherwise: our choice, its reason, the switch, its cost."""

import pandas as pd
import yaml

from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.inspection import structure


def load(name: str):
    """The content of ``templates/inspection/<name>.yaml``: "readings", a list, or "variants", name -> configuration."""
    return yaml.safe_load((TEMPLATES / "inspection" / f"{name}.yaml").read_text(encoding="utf-8"))


def table(size: int) -> pd.DataFrame:
    """The readings with the cost of the other reading at full width, four classes, one channel.

    Args:
        size: of the image, px a side.

    Returns:
        Columns: claim, open point, our choice, why, switch, otherwise costs (text; empty where the network
        is not concerned).
    """
    rows = pd.DataFrame(load("readings"))
    ours = {"name": "optimized_xception", "num_classes": 4, "in_chans": 1}
    others = rows.pop("otherwise").dropna()
    costs = structure.costs({"ours": {}} | others.to_dict(), size, **ours).set_index("variant")
    change = pd.DataFrame({"M parameters": costs["parameters"] / 1e6, "GMACs": costs["gmacs"]})
    change -= change.loc["ours"]
    rows["otherwise costs"] = ""
    for k, switches in others.items():
        moved = change.loc[k][change.loc[k].abs() >= 0.005]
        said = ", ".join(f"{value:+.2f} {unit}" for unit, value in moved.items())
        text = f"{', '.join(map(str, switches.values()))}: {said or 'the same'}"
        rows.loc[k, "otherwise costs"] = text.replace("-", "−")
    return rows
