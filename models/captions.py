"""Many ways to ask for one picture."""

from random import Random

from models import PROMPT_FORM
from models.data import Icons

OTHER_FORMS = ("{name}", "{style} {name}", "a {name} emoji, {style} style", "a {style} style picture of a {name}")


def plain_caption(icons: Icons, index: int) -> str:
    """Return the caption in the documented prompt form."""
    return PROMPT_FORM.format(name=icons.names[index], style=icons.styles[index])


def varied_caption(icons: Icons, index: int, random: Random, *, plain_share: float = 0.6) -> str:
    """Draw a caption: mostly the documented form, else another wording or one with keywords."""
    name, style, keywords = icons.names[index], icons.styles[index], icons.keywords[index]
    if random.random() < plain_share:
        return plain_caption(icons, index)
    if keywords and random.random() < 0.3:
        words = ", ".join([name, *random.sample(keywords, min(2, len(keywords)))])
        return PROMPT_FORM.format(name=words, style=style)
    return random.choice(OTHER_FORMS).format(name=name, style=style)


def caption_corpus(icons: Icons) -> list[str]:
    """Every wording that any caption can contain, for training the tokenizer."""
    forms = [form.format(name="", style="") for form in (PROMPT_FORM, *OTHER_FORMS)]
    letters = " ".join("abcdefghijklmnopqrstuvwxyz0123456789")  # so that any word can be spelled
    words = {" ".join(words) for words in icons.keywords}
    return [letters, *forms, *sorted(set(icons.names)), *sorted(set(icons.styles)), *sorted(words)]
