"""What Airflow's Variables keep in production, kept in files where stages run without Airflow: in tests and benchmarks."""

from pathlib import Path


class KeptInFiles:
    """Keeps texts by name in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f"{name}.{id(self)}.new"
        unfinished.write_text(text)
        unfinished.replace(self._folder / name)
