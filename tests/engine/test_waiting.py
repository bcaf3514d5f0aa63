"""A training step asks the device for no value: on a GPU the host would wait for all its work.

Here every operation of a step on the CPU is looked at; ``tests/gpu`` asks torch on a GPU.
"""

import traceback
from contextlib import ExitStack

import pytest
from lightning.pytorch.callbacks import Callback
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import TorchDispatchMode

from clsp_plugin.data.augmentation import pipeline
from clsp_plugin.engine import pretrain as engine
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives

# The shape or a number of the host depends on what these find.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::is_nonzero", "aten::equal",
}  # fmt: skip
# These ask for values that lie on the host: the steps of Adam, and a weight that is drawn there.
ON_THE_HOST = ("optim/adam.py", "optim/optimizer.py", "losses/feature_transform.py")
BASES = {name for name, cls in METHODS.items() if not issubclass(cls, SyntheticPositives)}


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in WAITING:
            frames = [f for f in traceback.extract_stack() if f.filename != __file__]
            ours = [f for f in frames if "clsp_plugin" in f.filename]
            # the training step runs inside the optimiser's
            if not any(f.filename.endswith(ON_THE_HOST) for f in (*frames[-3:], ours[-1])):
                self.seen.append((function._schema.name, str(ours[-1])))
        return function(*args, **(kwargs or {}))


class Watched(Callback):
    """Watches every step of an epoch after the first, with the making of its views."""

    def __init__(self):
        self.watching, self.steps, self.entered = Watching(), 0, ExitStack()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps += 1
        self.entered.close()
        if not trainer.is_last_batch:
            self.entered.enter_context(self.watching)

    def on_exception(self, trainer, module, exception):
        self.entered.close()


@pytest.mark.parametrize("name", sorted({*BASES, "clsp_mocov2", "simclr_aug"}))
def test_no_step_asks_for_a_value(tiny, store, monkeypatch, name):
    watched, new = Watched(), engine.new_trainer

    def new_trainer(**keys):
        return new(**{**keys, "callbacks": [*keys["callbacks"], watched]})

    monkeypatch.setattr(engine, "new_trainer", new_trainer)
    # as on a GPU: a CPU looks which images have a part in a step
    monkeypatch.setattr(pipeline, "augment_where_needed", pipeline.augment)
    given = [f"synthetic.path={store}"] if name.startswith("clsp_") else []
    engine.pretrain(tiny(name, "max_epochs=1", "checkpoint.enabled=False", *given))
    assert watched.steps == 3
    assert watched.watching.seen == []


def test_watching_ends_with_a_step_that_fails(tiny, monkeypatch):
    """Otherwise the tests after it would be watched too."""
    watched, new = Watched(), engine.new_trainer

    def fail(self, trainer, module, outputs, batch, batch_idx):
        raise RuntimeError("a step failed")

    dying = type("Dying", (Callback,), {"on_train_batch_end": fail})()
    monkeypatch.setattr(
        engine, "new_trainer", lambda **keys: new(**{**keys, "callbacks": [watched, dying]})
    )
    with pytest.raises(RuntimeError, match="a step failed"):
        engine.pretrain(tiny("simclr", "max_epochs=1", "checkpoint.enabled=False"))
    assert watched.steps == 1
    assert _len_torch_dispatch_stack() == 0
