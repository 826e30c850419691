"""A small model with a concept and a reference on it, sampled through the host's own nodes."""

import torch

from vico_spin.nodes.vico.evaluations import Evaluations
from vico_spin.nodes.vico.prompts import Prompts
from vico_spin.nodes.vico.subject import Run
from vico_spin.vico_core import ImageAttention, ViCoConcept

PLACES = {"output_blocks.4.1": 128, "output_blocks.6.1": 64, "output_blocks.8.1": 64, "output_blocks.10.1": 32}
PROMPT = "a photo of a * on the beach"
STEPS = 2


def make_concept(seed=0, width=40, places=PLACES):
    torch.manual_seed(seed)
    modules = {place: ImageAttention(dim, 8, dim // 8).state_dict() for place, dim in places.items()}
    return ViCoConcept(modules, {"l": torch.randn(1, width)})


class Bench:
    """A small SD1.x-shaped model, CLIP and VAE with a concept and a reference, sampled through the host's own nodes."""

    def __init__(self, call, model, clip, vae):
        self.call, self.model, self.clip, self.vae = call, model, clip, vae
        self.concept = make_concept()
        self.reference = self.make_reference()
        self.passes = self.count_passes()

    def make_reference(self, seed=5, photos=1, size=(128, 128), **more):
        image = torch.rand(photos, *size, 3, generator=torch.Generator().manual_seed(seed))
        return self.call("ViCoReference", vae=self.vae, image=image, size=128, **more)[0]

    def count_passes(self):
        """Every reference pass of this U-Net appends its number of rows."""
        unet, passes = self.model.model.diffusion_model, []
        plain = unet._forward

        def forward(x, timesteps, context, y, control, transformer_options, **kwargs):
            if "vico_capture" in transformer_options:
                passes.append(x.shape[0])
            return plain(x, timesteps, context, y, control, transformer_options, **kwargs)

        unet._forward = forward
        return passes

    def apply(self, model=None, clip=None, concept=None, reference=None, **settings):
        inputs = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mask": "automatic", **settings}
        concept, reference = concept or self.concept, reference or self.reference
        return self.call(
            "ViCoApply",
            model=model or self.model,
            clip=clip or self.clip,
            concept=concept,
            reference=reference,
            **inputs,
        )

    def columns(self, model, conditioning):
        """Where the word of the one Apply on the model stands in each prompt of the first part of a conditioning."""
        (subject,) = [w[0].__self__ for w in model.wrappers["apply_model"].values()]
        return subject.trigger.memory.find({"cross_attn": conditioning[0][0], **conditioning[0][1]})

    def encode(self, clip, text):
        return self.call("CLIPTextEncode", clip=clip, text=text)[0]

    def sample(
        self,
        model,
        clip,
        prompt=PROMPT,
        negative="",
        seed=1,
        batch=1,
        cfg=5.0,
        steps=STEPS,
        latent=None,
        positive=None,
        denoise=1.0,
    ):
        latent = latent or {"samples": torch.zeros(batch, 4, 16, 16)}
        return self.call(
            "KSampler",
            model=model,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name="euler",
            scheduler="normal",
            positive=positive if positive is not None else self.encode(clip, prompt),
            negative=self.encode(clip, negative),
            latent_image=latent,
            denoise=denoise,
        )[0]["samples"]

    def plain(self, **settings):
        return self.sample(self.model, self.clip, **settings)


def close(a, b, tolerance=1e-4):
    return (a - b).abs().max() <= tolerance * b.abs().max()


class Forward:
    """The end of the host's chain of wrappers: the network itself, given x and t as they are."""

    def __init__(self, model, t):
        self.class_obj, self.t = model.model, t

    def __call__(self, x, sigma, c_concat, c_crossattn, control, options):
        return self.class_obj.diffusion_model(x, self.t.float(), context=c_crossattn, transformer_options=options)


def called(model, subject, x, t, context, columns):
    """One call of a loaded model's network through Apply ViCo, a prompt a row. t: the schedule's numbers; columns: each row's."""
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[t]
    uuids = [f"prompt{i}" for i in range(x.shape[0])]
    prompts = Prompts({uuid: [tuple(row)] for uuid, row in zip(uuids, columns, strict=True)}, [])
    run = Run(prompts, model, Evaluations(None, sigma, sampling, {}), (float("inf"), 0.0))
    run.latents, run.masks, run.foreign = subject.latents, [None] * len(subject.latents), True
    options = {"uuids": uuids, "sigmas": sigma, subject.key: run}
    return subject.on_apply(Forward(model, t), x, sigma, None, context, None, options)
