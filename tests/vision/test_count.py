"""Multiply-adds against sums done by hand."""

import torch
from torch import Tensor, nn

from headway.vision.count import count, parameters, stored


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.mT, -1) @ x

    def attention_macs(self, x: Tensor) -> int:
        batch, tokens, width = x.shape
        return batch * 2 * tokens * tokens * width


class Net(nn.Module):
    """(n, 4, 8, 8) -> (n, 5): one layer is called twice, one is never reached, one is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.attention = Attention()
        self.head = nn.Linear(2, 5)
        self.same = self.head
        self.unused = nn.Linear(1000, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = self.depthwise(self.depthwise(x))
        x = self.up(x).flatten(2).mT
        return self.head(self.attention(x)).mean(1)


def test_every_layer_counts_as_often_as_it_is_called_and_attention_apart() -> None:
    counts = count(Net(), torch.zeros(1, 4, 8, 8))
    stem, depthwise, up = 16 * 6 * 4 * 9, 16 * 6 * 9, 16 * 6 * 2 * 4
    assert counts.conv_macs == stem + 2 * depthwise + up
    assert counts.linear_macs == 64 * 2 * 5
    assert counts.attention_macs == 2 * 64 * 64 * 2
    assert counts.macs == counts.layer_macs + counts.attention_macs
    assert counts.layer_macs == counts.conv_macs + counts.linear_macs


def test_multiply_adds_grow_with_the_batch_and_values_do_not() -> None:
    one, three = (count(Net(), (torch.zeros(batch, 4, 8, 8),)) for batch in (1, 3))
    assert three.macs == 3 * one.macs
    assert three.trainable == one.trainable and three.stored == one.stored


def test_values_are_counted_once_and_statistics_are_stored_but_not_trained() -> None:
    net = Net()
    unused = 1000 * 1000 + 1000
    trained = 6 * 4 * 9 + 12 + 6 * 9 + 6 + 6 * 2 * 4 + 2 + 2 * 5 + 5 + unused
    assert parameters(net) == trained
    assert stored(net) == trained + 12, "running means and variances; the number of batches is no float"
    assert parameters(net.requires_grad_(False)) == 0


def test_the_module_stays_as_it_was() -> None:
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count(net, torch.randn(2, 4, 8, 8))
    assert net.training and not any(child._forward_hooks for child in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
