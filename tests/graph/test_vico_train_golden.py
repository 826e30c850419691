"""The training step through the real ComfyUI U-Net and CLIP, against the authors' numbers: losses 1e-4, gradients 2e-3."""

import pytest
import torch
from safetensors import safe_open

from vico_spin.nodes.host import copies
from vico_spin.nodes.vico import streams
from vico_spin.nodes.vico.encoders import word_ids
from vico_spin.nodes.vico.places import places_of
from vico_spin.train_core import LocalEngine
from vico_spin.vico_core import attention_regularization
from vico_spin.vico_core.training import Batch, TrainedConcept, ViCoObjective

LAYOUT = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention": 2, "heads": 4}
ROWS = {"b1": 1, "b2": 2}


def load(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def clip06(golden, make_clip):
    """The host's CLIP with golden 06's weights."""
    data, metadata = load(golden / "vico" / "06_embedding_manager.safetensors")
    config = {"width": "hidden", "intermediate": "intermediate", "layers": "layers", "heads": "heads"}
    clip = make_clip(**{ours: int(metadata[theirs]) for ours, theirs in config.items()})
    text = clip.cond_stage_model.clip_l.transformer
    text.load_state_dict({k.removeprefix("clip."): v for k, v in data.items() if k.startswith("clip.")}, strict=False)
    with torch.no_grad():
        text.get_input_embeddings().weight[data["token_rows_ids"]] = data["token_rows"]
    return clip


class GoldenStep:
    """UNet A, the tiny CLIP and image attention with the golden weights, and golden 05's batch."""

    def __init__(self, golden, make_sd1, clip, rows: int, checkpointing=False):
        self.unet_data, _ = load(golden / "vico" / "04_unet_tiny.safetensors")
        self.data, self.metadata = load(golden / "vico" / "05_train_step.safetensors")
        clip_data, _ = load(golden / "vico" / "06_embedding_manager.safetensors")
        model = make_sd1(context_dim=40, **LAYOUT)
        weights = {k.removeprefix("unet."): v.float() for k, v in self.unet_data.items() if k.startswith("unet.")}
        plain = {k: v for k, v in weights.items() if ".image_cross_attention." not in k}
        model.model.diffusion_model.load_state_dict(plain)
        self.patcher = copies.training_copy(model)
        self.trained = TrainedConcept(places_of(model.model)[1], {"l": clip_data["star"]})
        self.parameters = {}
        for name, parameter in self.trained.image_attention.named_parameters():
            (_, _, level, depth), rest = name.split(".", 1)[0].split("_"), name.split(".", 1)[1]
            key = f"output_blocks.{level}.{depth}.image_cross_attention.{rest}"
            self.parameters[key] = parameter
            parameter.data.copy_(weights[key])
        self.clip = streams.training_clip(clip)
        self.host = streams.HostStreams(self.patcher, self.clip, self.trained, "*", LocalEngine())
        self.objective = ViCoObjective(self.host)
        self.batch = self.make_batch(rows)

    @property
    def star(self):
        return self.trained.words["l"]

    def make_batch(self, rows: int) -> Batch:
        """Golden 05's; its captions are ids of a toy vocabulary, put where the streams keep their tokens."""
        captions = [f"golden {row}" for row in range(rows)]
        for row, caption in enumerate(captions):
            ids = self.data["token_ids"][row].tolist()
            trigger = self.host.trigger
            vector, (word,) = trigger.tokens("l")[0], word_ids(self.host.clip, "l", "*")
            self.host.tokens[caption] = {"l": [[(vector if i == word else i, 1.0) for i in ids]]}
        z, z_ref, noise, t = (self.data[k][:rows] for k in ("z", "z_ref", "noise", "t"))
        return Batch(z, z_ref, noise, t, captions)

    def step(self):
        self.trained.zero_grad()
        return self.objective(self.batch, lambda loss: loss.backward())


@pytest.fixture(params=ROWS)
def step(request, golden, make_sd1, clip06):
    with copies.training_mode():
        yield GoldenStep(golden, make_sd1, clip06, ROWS[request.param]), request.param


def test_golden_losses_and_gradients(step):
    step, name = step
    metrics = step.step()
    for ours, theirs in {"loss": "loss", "mse": "loss_simple", "regularization": "loss_reg_weighted"}.items():
        assert relative_error(metrics[ours], step.data[f"{name}.{theirs}"]) < 1e-4, ours
    assert relative_error(step.star.grad, step.data[f"{name}.grad_star"]) < 2e-3
    order = step.metadata["ica_order"].split(",")
    norms = torch.stack([step.parameters[key].grad.norm() for key in order])
    assert relative_error(norms, step.data[f"{name}.grad_ica_norms"]) < 2e-3
    for key in (k for k in step.data if k.startswith(f"{name}.grad_ica.")):
        got, expected = step.parameters[key.removeprefix(f"{name}.grad_ica.")].grad, step.data[key]
        # One of the two is zero but for rounding (a bias that the next norm takes away): compare it to the whole gradient.
        scale = max(expected.abs().max(), 1e-5 * step.data[f"{name}.grad_ica_total_norm"])
        assert (got - expected).abs().max() < 2e-3 * scale, key


def test_golden_regularisation_trains_the_word_alone(step):
    step, name = step
    step.trained.zero_grad()
    objective = ViCoObjective(step.host)
    x_t = step.host.schedule.q_sample(step.batch.x0, step.batch.noise, step.batch.t)
    maps = step.host.predict(x_t, step.batch).maps
    (objective.weight * sum(attention_regularization(*m) for m in maps)).backward()
    assert relative_error(step.star.grad, step.data[f"{name}.grad_star_from_reg"]) < 2e-3
    assert all(p.grad is None for p in step.parameters.values())


def test_golden_three_adamw_steps(step):
    step, name = step
    optimizer = step.trained.optimizer()
    for i in range(3):
        metrics = step.step()
        assert relative_error(metrics["loss"], step.data[f"{name}.loss_at_step{i}"]) < 1e-4
        optimizer.step()
        assert relative_error(step.star.detach(), step.data[f"{name}.star_after_step{i + 1}"]) < 1e-4
    if name == "b1":
        rows = step.parameters["output_blocks.1.1.image_cross_attention.attn2.to_k.weight"][:4].detach()
        assert relative_error(rows, step.data["b1.ica_to_k_rows0to4_after_step3"]) < 1e-4
