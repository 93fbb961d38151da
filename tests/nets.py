"""Architectures, small enough for many finite networks of each to be evaluated."""

import infinitenet as inn


def _transformer(width):
    block = inn.TransformerEncoderBlock(width, width, b_std=0.1, pos_emb_type="SUM")
    layers = [inn.Dense(width), inn.Repeat(block, 2), inn.GlobalAvgPool(), inn.Dense(1)]
    return inn.Sequential(layers)


def _pooled_attention(width):
    conv = inn.Conv(width, (3,), padding="SAME", b_std=0.1)
    attention = inn.SelfAttention(width, width, width, width, b_std=0.2)
    return inn.Sequential([conv, inn.Relu(), attention, inn.GlobalAvgPool(), inn.Dense(1)])


def _wide_resnet(width):
    """With a first convolution that grows as well: that of the paper has 16 channels."""
    net = inn.WideResNet(10, max(width // 16, 1), 1, b_std=0.1)
    first = inn.Conv(width, (3, 3), padding="SAME", b_std=0.1)
    return inn.Sequential([first, *net.layers[1:]])


# By name: a function of a width, in proportion to which all widths grow, and the shape of
# an example.
architectures = {
    "fully_connected": (
        lambda width: inn.FullyConnected(3, width, 1, W_std=1.4, b_std=0.2),
        (5,),
    ),
    "conv_only": (lambda width: inn.ConvOnly(3, width, 1, b_std=0.1), (3, 4, 2)),
    "conv_only_pooled": (
        lambda width: inn.ConvOnly(2, width, 1, inn.Erf(), head=inn.GlobalAvgPool()),
        (3, 4, 2),
    ),
    "wide_resnet": (_wide_resnet, (4, 4, 2)),
    "myrtle": (lambda width: inn.Myrtle(5, width, 1), (4, 4, 2)),
    "lenet": (lambda width: inn.LeNet(1, max(width // 6, 1)), (12, 12, 1)),
    "transformer": (_transformer, (3, 2)),
    "pooled_attention": (_pooled_attention, (4, 2)),
}
