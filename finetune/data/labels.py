"""Names of classes in folders and tables, and the option `--labels` that maps further ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune.errors import DataError, SettingsError
from xray_client import LABELS

NOT_A_CLASS = "-"
LABELS_HELP = (
    "Classes of further names of folders, or of labels in a table, as in "
    '"COVID19=Pneumonia,Viral Pneumonia=Pneumonia,Lung_Opacity=-"; - leaves a name out.'
)
_BUILT_IN = {name.casefold(): label for label, name in enumerate(LABELS)}


@dataclass
class LabelNames:
    """Classes by name, in any case.

    Attributes:
        given: Further names: index into LABELS, or None for what is left out.
    """

    given: Mapping[str, int | None] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str | None) -> LabelNames:
        """Read the option `--labels`.

        Raises:
            SettingsError: It is not a list of NAME=CLASS.
        """
        given: dict[str, int | None] = {}
        for pair in filter(str.strip, (text or "").split(",")):
            name, equals, label = (part.strip() for part in pair.rpartition("="))
            known = label == NOT_A_CLASS or label.casefold() in _BUILT_IN
            if not (name and equals and known):
                raise SettingsError(
                    f"labels has {pair.strip()!r}, which is not NAME=CLASS",
                    remedy=f"a class is {', '.join(LABELS)}, or {NOT_A_CLASS} to leave the name out",
                )
            value = None if label == NOT_A_CLASS else _BUILT_IN[label.casefold()]
            if given.setdefault(name.casefold(), value) != value:
                raise SettingsError(f"labels names {name!r} twice", remedy="keep one of them")
        return cls(given)

    def of(self, name: str) -> int | None:
        """Return the class of a name, an index into LABELS; None if it has none or is left out."""
        key = name.strip().casefold()
        if key in self.given:
            self._used.add(key)
            return self.given[key]
        return _BUILT_IN.get(key)

    def is_given(self, name: str) -> bool:
        """Tell if the option names it."""
        return name.strip().casefold() in self.given

    def why_not(self, name: str) -> str | None:
        """Return the reason if the option leaves the name out."""
        left_out = self.is_given(name) and self.of(name) is None
        return "class left out by --labels" if left_out else None

    def check_used(self, source: str) -> None:
        """Raise `DataError` if the option names what is nowhere: a slip of the pen would leave a class out."""
        if unused := sorted(set(self.given) - self._used):
            raise DataError(
                f"--labels names {unused[0]!r}, which is not there", source=source, remedy="correct the name"
            )
