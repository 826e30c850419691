"""What a reading found, and what it left out and why: the same words for a trainer and for a scorer."""

from dataclasses import dataclass, field

NAMED_AT_MOST = 20


@dataclass
class Report:
    """What was found, and what was left out and why. Only the first names of each reason are kept."""

    kept: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Something that a person should know and that leaves nothing out; said once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def leave_out(self, name: str, reason: str) -> None:
        """reason: a few words, or an error's two lines."""
        reason = " ".join(reason.splitlines())
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.left_out.setdefault(reason, [])
        if len(names) < NAMED_AT_MOST:
            names.append(name)

    def in_short(self) -> str:
        """The numbers alone, in one line."""
        left_out = sum(self.counts.values())
        return f"{self.kept} samples" + (f", {left_out} left out." if left_out else ".")

    def in_a_line(self) -> str:
        """All of it in one line, for an error, of which a node shows two."""
        return "; ".join(self.text().splitlines())

    def text(self) -> str:
        lines = [f"{self.kept} samples"]
        for reason, count in self.counts.items():
            names = self.left_out[reason]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            lines.append(f"left out, {reason}: {count} ({', '.join(names)}{more})")
        return "\n".join([*lines, *self.notes])
