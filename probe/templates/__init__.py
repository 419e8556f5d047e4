"""From a question and its answer to tokens: how both become one text, where it begins and ends, and what is refused."""
