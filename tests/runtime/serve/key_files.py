"""Keys files, and what clients present."""

from pathlib import Path

from s2ap_defend.serve.keys import Key, hash_key, new_key, write_entry

RIGHTS = {"asker": ("infer",), "analyst": ("infer", "evidence"), "operator": ("admin",)}


class Ring:
    """Keys by name, and their file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"
        self.entries: dict[str, Key] = {}
        self.tokens: dict[str, str] = {}
        for name, rights in RIGHTS.items():
            self.add(name, *rights)

    def add(self, name: str, *rights: str, images_per_second: float | None = None, burst: int | None = None) -> None:
        self.tokens[name] = new_key()
        digest = hash_key(self.tokens[name].encode())
        self.entries[name] = Key(name, digest, frozenset(rights), images_per_second, burst)
        self.write()

    def remove(self, name: str) -> None:
        del self.entries[name]
        self.write()

    def write(self) -> None:
        """Replace the file at one moment, as editors and Kubernetes do."""
        draft = self.path.with_suffix(".draft")
        draft.write_text("# who may ask\n" + "\n".join(map(write_entry, self.entries.values())))
        draft.replace(self.path)

    def bearer(self, name: str | None) -> dict[str, str]:
        return {} if name is None else {"authorization": f"Bearer {self.tokens[name]}"}
