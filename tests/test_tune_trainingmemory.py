"""How much of a GPU's memory a training needs."""

from tune.cloud.preflightsettings import Plan
from tune.cloud.trainingmemory import GIB, needs


def test_training_memory_grows_with_what_is_trained() -> None:
    small, large = needs(Plan("resnet50", "finetune", 224, 8)), needs(Plan("resnet50", "finetune", 224, 32))
    frozen = needs(Plan("resnet50", "frozen", 224, 32))
    assert small.least < small.most < large.most
    assert frozen.most < large.least + 1.5 * GIB
    # 25.6 million weights at 16 bytes, and about 20 million outputs an image that are kept, at 2 or 4.
    assert 1.0 * GIB < large.least < 3.0 * GIB
    assert 4.0 * GIB < large.most < 8.0 * GIB
