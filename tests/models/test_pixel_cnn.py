"""The PixelCNN: no pixel sees itself or a later one, probabilities are probabilities, greedy choices are the best."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from maep.models.greedy_pixels import greedy_pixels
from maep.models.pixel_cnn import PixelCnn, log_likelihood, log_logistic

HEIGHT, WIDTH = 4, 5


def network(layers: int = 2) -> PixelCnn:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelCnn(6, layers, 3).requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases too, and mixtures that are far from one level
    return model


def pictures(count: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("at", [(0, 0), (2, 2), (3, 4), (1, 0)])
def test_a_pixel_sees_the_ones_before_it_alone(at: tuple[int, int]) -> None:
    """In reading order, all of them that the layers reach: the row on the left, and the rows above on both sides."""
    images = pictures(1).requires_grad_()
    numbers = network(4)(images)[0, :, at[0], at[1]]
    (gradient,) = torch.autograd.grad((numbers * torch.linspace(1, 2, len(numbers))).sum(), images)
    seen = gradient[0].ne(0).any(0).flatten()
    place = at[0] * WIDTH + at[1]
    assert seen[:place].all()
    assert not seen[place:].any()


def test_levels_have_all_of_the_probability() -> None:
    """Sharp or broad, within the range or outside of it; however improbable, the logarithm is finite."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean in (-3.0, -1.0, 0.1, 1.0):
        for scale in (-7.0, -2.0, 2.0):
            logs = log_logistic(values, torch.tensor(mean), torch.tensor(scale).double())
            assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)
            assert logs.isfinite().all()


def test_a_pixel_has_the_mixtures_probability() -> None:
    """Σ_k w_k · p(red) · p(green | red) · p(blue | red, green), by differences of logistic functions, in float64."""
    images, numbers = pictures().double(), network().double()(pictures().double())
    x, n = 2 * images - 1, numbers.unflatten(1, (10, 3))
    red, green = x[:, :1], x[:, 1:2]
    tie = n[:, 7:10].tanh()
    means = [n[:, 1], n[:, 2] + tie[:, 0] * red, n[:, 3] + tie[:, 1] * red + tie[:, 2] * green]
    total = n[:, 0].softmax(1)
    for channel, mean in enumerate(means):
        value, scale = x[:, channel : channel + 1], n[:, 4 + channel].exp()
        upper, lower = ((value - mean + side / 255) / scale for side in (1, -1))
        upper, lower = upper.sigmoid(), lower.sigmoid()
        upper = torch.where(value > 1 - 1e-6, 1.0, upper)
        lower = torch.where(value < 1e-6 - 1, 0.0, lower)
        total = total * (upper - lower)
    torch.testing.assert_close(log_likelihood(numbers, images), total.sum(1).log())


def best_of(model: PixelCnn, images: Tensor, reach: int) -> Tensor:
    """The greedy pixels of one image, each by a whole forward pass for every candidate."""
    images = images.clone()
    for row in range(images.shape[2]):
        for column in range(images.shape[3]):
            own = images[0, :, row, column].clone()
            for channel in range(3):
                scores = {}
                for step in range(-reach, reach + 1):
                    level = round(own[channel].item() * 255) + step
                    if 0 <= level <= 255:
                        images[0, channel, row, column] = level / 255
                        scores[level] = channel_score(model, images, row, column, channel)
                images[0, channel, row, column] = max(scores, key=lambda level: scores[level]) / 255
    return images


def channel_score(model: PixelCnn, images: Tensor, row: int, column: int, last: int) -> float:
    """Logarithm of the probability of a pixel's channels up to one."""
    n = model(images)[0, :, row, column].unflatten(0, (10, 3))
    x, tie, total = 2 * images[0, :, row, column] - 1, n[7:10].tanh(), n[0].log_softmax(0)
    means = [n[1], n[2] + tie[0] * x[0], n[3] + tie[1] * x[0] + tie[2] * x[1]]
    for channel in range(last + 1):
        total = total + log_logistic(x[channel].expand(3), means[channel], n[4 + channel])
    return total.logsumexp(0).item()


def test_greedy_pixels_are_those_of_whole_forward_passes() -> None:
    """What is kept of earlier pixels changes nothing; levels stay within reach; a batch is its images."""
    model, images = network().double(), pictures(2).double()
    chosen = greedy_pixels(model, images, 3)
    for number in range(2):
        single = images[number : number + 1]
        torch.testing.assert_close(greedy_pixels(model, single, 3), chosen[number : number + 1], rtol=0, atol=0)
        torch.testing.assert_close(best_of(model, single, 3), chosen[number : number + 1], rtol=0, atol=1e-9)
    moved = ((chosen - images) * 255).round()
    assert moved.abs().max() == 3
    assert len(moved.unique()) > 4


def test_without_reach_an_image_stays_as_it_is() -> None:
    """But for what lies between two levels."""
    images = pictures()
    assert torch.equal(greedy_pixels(network(), images + 0.3 / 255, 0), images)


def test_a_tail_is_told_from_a_farther_one() -> None:
    """In fp32 as well, where differences of probabilities would all be 0."""
    far = log_logistic(torch.tensor([0.5, 0.9]), torch.tensor(-1.0), torch.tensor(-7.0))
    assert far[0] > far[1]
    assert far[1].item() == pytest.approx(logsigmoid(torch.tensor(-(1.9 - 1 / 255) * torch.e**7)).item(), rel=1e-4)
