"""What a command's function was called with: keywords, and the file that `config` names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.options.given import method_settings_of, settings_of_command
from nonpareil.options.objects import as_option
from nonpareil.options.yaml import load_yaml, meant
from nonpareil.settings import Setting


class Called:
    """What was given by keyword, and in the file that `config` names.

    Raises:
        ConfigError: a name that no setting has, with the nearest, or an object where there can be none.
    """

    def __init__(
        self, name: str, classes: Sequence[type], options: Mapping[str, Any], *, config_is_options: bool
    ) -> None:
        """`classes`: of the options of the command `name`."""
        keywords = dict(options)
        config = keywords.pop("config", None)
        self.config = None if config is None else str(config)
        content: Mapping[str, Any] = {}
        if self.config is not None and config_is_options:
            content = load_yaml(Path(self.config))
        known = settings_of_command(classes)
        method = {**content, **keywords}.get("method", known["method"].default if "method" in known else None)
        self.of_method: dict[str, Setting] = {}
        """The settings of the method that is named; one that is an object has its own."""
        if isinstance(method, str):
            self.of_method = method_settings_of(classes, method)
        names = [*known, *self.of_method]
        for where, given in ((f"config={self.config!r}: ", content), ("", keywords)):
            for option in given:
                if option not in names:
                    hint = meant(option, [*names, "config"])
                    raise ConfigError(f"{where}unknown option {option!r} of {name}{hint}")
        values = {option: as_option(option, known.get(option), value) for option, value in keywords.items()}
        self.values = {**content, **values}
