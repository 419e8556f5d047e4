"""What a model looks like inside: one question a file, each one function with one frozen result.

A diagnostic answers for the model it is given, edited or blended as it may be at that moment, and leaves it as found;
comparing models is the caller's.
"""

from probe.exports import export

export(__name__)
