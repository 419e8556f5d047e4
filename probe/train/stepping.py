"""Ways of stepping that look around the present weights: sharpness, smoothing, gradient and curvature penalties.

Each is a value for ``minimise(..., stepping=...)``. ``on`` names the terms that it acts on (Fan et al., arXiv
2502.05374, act on the forget term alone); an empty ``on`` is all of them. The other terms keep their plain gradient.
"""

from dataclasses import dataclass

from probe.train.step import Gradient, Losses, Step, added, norm, plain_gradient


@dataclass(frozen=True)
class SAM:
    """g = grad L_on(theta + rho g_on / |g_on|) + grad L_rest(theta): sharpness-aware minimisation.

    Foret et al., arXiv 2010.01412, eqs. 2-3; for unlearning Fan et al., arXiv 2502.05374. |.| is the L2 norm over all
    trained weights together; losses are those at theta.

    Args:
        rho: radius, at least 0; 0 is the plain step.
        on: names of the terms to be sharpness-aware.

    Raises:
        ValueError: rho is negative.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> model, run = copy.deepcopy(s.original), dict(steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(model, [term], stepping=probe.SAM(rho=0.01), **run)
    """

    rho: float
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least_zero("rho", self.rho)

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.rho == 0:
            return plain_gradient(step)
        losses, gradient = step.gradient(inside)
        length = norm(gradient)
        if length > 0:
            with step.kept():
                step.move(gradient, self.rho / length)
                gradient = step.gradient(inside)[1]
        others, rest = step.gradient(outside)
        return losses | others, added(gradient, rest)


@dataclass(frozen=True)
class Smoothing:
    """g = mean_s grad L_on(theta + sigma e_s) + grad L_rest(theta), e_s standard normal: randomised smoothing.

    Cohen et al., arXiv 1902.02918, on weights as in Fan et al., arXiv 2502.05374. The losses of ``on`` are means over
    the same draws; draws depend on the run's seed and the step alone.

    Args:
        sigma: standard deviation of the noise, at least 0; 0 is the plain step.
        samples: draws a step; the published code uses 3.
        on: names of the terms to be smoothed.

    Raises:
        ValueError: sigma is negative, or there are no samples.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> model, run = copy.deepcopy(s.original), dict(steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(model, [term], stepping=probe.Smoothing(sigma=0.01, samples=2), **run)
    """

    sigma: float
    samples: int
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least_zero("sigma", self.sigma)
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.sigma == 0:
            return plain_gradient(step)
        losses, gradient = step.gradient(outside)
        losses |= dict.fromkeys(inside, 0.0)
        for draw in range(self.samples):
            with step.kept():
                step.move(step.noise(draw), self.sigma)
                found, noisy = step.gradient(inside)
            gradient = added(gradient, noisy, 1 / self.samples)
            losses |= {k: losses[k] + found[k] / self.samples for k in inside}
        return losses, gradient


@dataclass(frozen=True)
class GradientPenalty:
    """L_on + rho |grad L_on|: a penalty on the gradient's norm, whose own gradient is H g / |g|.

    Fan et al., arXiv 2502.05374, after Zhao et al., arXiv 2202.03599. The published code adds the norm as a plain
    number, which has no gradient; here it is the real one, by double backward. Losses are without the penalty.

    Args:
        rho: weight of the penalty, at least 0; 0 is the plain step.
        on: names of the terms whose summed gradient is penalised.

    Raises:
        ValueError: rho is negative.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> model, run = copy.deepcopy(s.original), dict(steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(model, [term], stepping=probe.GradientPenalty(rho=0.01), **run)
    """

    rho: float
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least_zero("rho", self.rho)

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.rho == 0:
            return plain_gradient(step)
        losses, gradient = step.gradient(inside)
        length = norm(gradient)
        if length > 0:
            product = step.curvature(inside, gradient)
            gradient = added(gradient, product, self.rho / length)
        others, rest = step.gradient(outside)
        return losses | others, added(gradient, rest)


@dataclass(frozen=True)
class CurvaturePenalty:
    """L_on + rho |g(theta + d) - g(theta)|, g = grad L_on, d = radius g / |g| held fixed: a penalty on curvature.

    Fan et al., arXiv 2502.05374, after Moosavi-Dezfooli et al., arXiv 1811.09716. With u the unit vector along
    g(theta + d) - g(theta), the penalty's gradient is H(theta + d) u - H(theta) u; the published code adds the norm
    as a plain number, which has none. Losses are without the penalty.

    Args:
        rho: weight of the penalty, at least 0; 0 is the plain step.
        radius: |d|, above 0.
        on: names of the terms whose summed gradient is meant.

    Raises:
        ValueError: rho is negative or radius not positive.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> model, run = copy.deepcopy(s.original), dict(steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(model, [term], stepping=probe.CurvaturePenalty(rho=0.01, radius=0.1), **run)
    """

    rho: float
    radius: float
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least_zero("rho", self.rho)
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.rho == 0:
            return plain_gradient(step)
        losses, gradient = step.gradient(inside)
        length = norm(gradient)
        if length > 0:
            with step.kept():
                step.move(gradient, self.radius / length)
                turned = added(step.gradient(inside)[1], gradient, -1.0)
                change = norm(turned)
                there = step.curvature(inside, turned) if change > 0 else {}
            here = step.curvature(inside, turned) if change > 0 else {}
            scale = self.rho / change if change > 0 else 0.0
            gradient = added(added(gradient, there, scale), here, -scale)
        others, rest = step.gradient(outside)
        return losses | others, added(gradient, rest)


def _at_least_zero(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
