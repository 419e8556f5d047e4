"""The letters that end a tensor's name, and the types that go with them.

B batch, T token position, D residual width, V vocabulary, L layer, F SAE feature,
N example (or B and T flattened), K class. Shapes are checked at run time in tests only.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TokensBT = Int[Tensor, "B T"]
MaskBT = Bool[Tensor, "B T"]
GroupB = Int[Tensor, " B"]
LogpBT = Float[Tensor, "B T"]
LogpB = Float[Tensor, " B"]
LogitsBTV = Float[Tensor, "B T V"]
HiddenBTD = Float[Tensor, "B T D"]
HiddenND = Float[Tensor, "N D"]
DirectionD = Float[Tensor, " D"]
FeaturesNF = Float[Tensor, "N F"]
PerLayerL = Float[Tensor, " L"]
Scalar = Float[Tensor, ""]
