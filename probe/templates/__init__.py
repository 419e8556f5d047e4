"""From a question and its answer to tokens: how both become one text, where it begins and ends, and what is refused."""

from probe.exports import export

export(__name__)
