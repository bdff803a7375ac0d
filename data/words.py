"""Numbers in sentences: one image, two images."""


def counted(number: int, noun: str) -> str:
    """`number` with its noun, in the plural where it is not 1; the plural is the noun with an s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
