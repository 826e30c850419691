"""What ViCo costs at the true shapes of large transformers: python -m vico_spin.benchmarks.vico_flops [--side 1024] [--json]

The host's own classes at the published sizes, on torch's meta device: every operation is counted and none computed. A further
picture has the reference's features at hand; the first one also runs the reference up to the last place. All keys kept: the
mask makes it less. --seconds: the Sprite World's DiT also draws, plain and with its example concept in turn, through the host's own
sampler; the ratio is of the processor's seconds, medians.
"""

from contextlib import ExitStack, suppress
from itertools import count

from ..scripts.host import enter
from .harness import finish, flags, flop_counter, in_turn, timed

TEXT_TOKENS = 128
SHAPES = {  # the host's configuration of the published weights
    "Z-Image": {
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "multiple_of": 256,
        "ffn_dim_multiplier": 8 / 3,
        "qk_norm": True,
        "in_channels": 16,
        "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    },
    "Qwen-Image": {"num_layers": 60},
    "Sprite World's DiT": None,
}


def network(name: str):
    """The family's network without weights."""
    import comfy.ldm.lumina.model
    import comfy.ldm.qwen_image.model
    import comfy.ops

    from ..nodes.sprite_world.model import DIT_CONFIG

    made = {"device": "meta", "operations": comfy.ops.disable_weight_init}
    if name == "Qwen-Image":
        return comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(**SHAPES[name], **made)
    config = SHAPES[name] or {k: v for k, v in DIT_CONFIG.items() if k not in ("image_model", "dtype")}
    return comfy.ldm.lumina.model.NextDiT(**config, **made)


class Seen:
    """Image attention at a network's default places, all keys kept of so many photos of the picture's size."""

    def __init__(self, net, photos: int = 1):
        from ..nodes.vico.places import default_places, shape_at, tokens_of
        from ..vico_core import ImageAttention

        self.net, self.places, self.photos = net, default_places(net), photos
        self.shapes = [shape_at(net, place) for place in self.places]
        self.tokens = {place.name: tokens_of(net, place) for place in self.places}
        device = next(net.parameters()).device
        self.modules = {s.name: ImageAttention(s.dim, s.heads, s.dim_head, device=device) for s in self.shapes}

    def attend(self, place, x, options):
        from ..vico_core import Kept

        rows, tokens, dim = x.shape
        kept = Kept(x.new_empty(self.photos * tokens, dim))
        return self.modules[place.name].forward_kept(x, [(list(range(rows)), kept)])

    def attached(self):
        from ..nodes.vico.attach import image_attended
        from ..nodes.vico.streams import replaced_forwards

        blocks = [self.net.get_submodule(place.block) for place in self.places]
        pairs = zip(blocks, self.places, strict=True)
        forwards = [image_attended(b.forward, p, self.tokens[p.name], self) for b, p in pairs]
        return replaced_forwards(blocks, forwards)


def forward(net, side: int, options: dict, text_width: int, channels: int) -> None:
    import torch

    from ..nodes.host.denoiser import graded_attention
    from ..nodes.host.families.image_tokens import LATENT

    frames = (1,) if type(net).__name__.startswith("Qwen") else ()
    x = torch.empty(1, channels, *frames, side // 8, side // 8, device="meta")
    context = torch.empty(1, TEXT_TOKENS, text_width, device="meta")
    given = {"num_tokens": TEXT_TOKENS} if not frames else {}
    own = {"optimized_attention_override": graded_attention, LATENT: x.shape, **options}
    net(x, torch.empty(1, device="meta"), context=context, transformer_options=own, **given)


def counted(net, side: int, with_places=None, capture=None) -> int:
    """Floating point operations of a forward."""
    import torch

    from ..nodes.vico.capture import CAPTURE, LastPlaceReached

    qwen = type(net).__name__.startswith("Qwen")
    text_width = net.txt_in.in_features if qwen else net.cap_embedder[1].in_features
    channels = net.in_channels // 4 if qwen else net.in_channels
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if with_places:
            stack.enter_context(with_places.attached())
        counter = stack.enter_context(flop_counter())
        with suppress(LastPlaceReached):
            forward(net, side, {CAPTURE: capture} if capture else {}, text_width, channels)
        return counter.get_total_flops()


def row(name: str, side: int) -> dict:
    """{"places", "share", "plain", "further", "first"}: operations of a forward, and the last two against the plain one."""
    from ..nodes.host.copies import training_mode
    from ..nodes.vico.capture import NO_MASK, Capture
    from ..nodes.vico.places import share

    net = network(name).eval()
    seen = Seen(net)
    capture = Capture(seen.places, [[0]], NO_MASK, None)
    capture.rows = [0]
    with training_mode():  # the host's fused kernels know no meta tensors
        plain, further, reference = counted(net, side), counted(net, side, seen), counted(net, side, seen, capture)
    return {
        "places": [place.name for place in seen.places],
        "share": share(seen.shapes, net),
        "plain": plain,
        "further": further / plain,
        "first": (further + reference) / plain,
    }


def seconds(repetitions: int) -> dict:
    """{"plain": the process's seconds of a picture, "further": of one with ViCo whose features are at hand, against it}."""
    import torch

    from ..nodes.host.sampling import Sampling
    from ..nodes.vico.attach import ApplySettings, attach, make_subject
    from ..nodes.vico.drawing import draw
    from ..nodes.vico.photos import Photo, Reference
    from ..nodes.vico.trigger import with_trigger
    from ..scripts.host import Host
    from ..sprite_world import EXAMPLE_CONCEPT_DIT
    from ..vico_core import ViCoConcept

    host = Host()
    model, clip, vae = host.call("SpriteWorldLoad", architecture="DiT")
    reference = Reference([Photo(torch.randn(1, 4, 16, 16), torch.zeros(128, 128, 3))])
    concept, sampling, seeds = ViCoConcept.load(EXAMPLE_CONCEPT_DIT), Sampling("euler", "normal", 20, 3.0), count()
    with torch.inference_mode():
        subject = make_subject(model, clip, concept, reference, ApplySettings())
        reads, prompts = with_trigger(clip, subject.trigger), ["a photo of a large pink * in snow"]

        def picture(drawn) -> dict[str, float]:
            return timed(lambda: draw(drawn, reads, vae, prompts, [next(seeds)], sampling, (4, 16, 16)))

        applied = attach(model, subject)  # its warm-up fills the bank
        taken = in_turn({"plain": lambda: picture(model), "further": lambda: picture(applied)}, repetitions)
    plain, further = (of["cpu_seconds"] for of in taken.values())
    return {"plain": plain, "further": further / plain}


def main() -> None:
    parser = flags(__doc__, side=(1024, "pixels of the picture and of the reference"))
    parser.add_argument("--seconds", type=int, metavar="N", help="also N pictures of the Sprite World's DiT, timed")
    options = parser.parse_args()
    enter()
    rows = {name: row(name, 128 if SHAPES[name] is None else options.side) for name in SHAPES}
    head = ["model", "places", "of its parameters", "plain, TFLOP", "further picture", "first picture"]
    lines = [" | ".join(["", *head, ""]).strip(), "| --- " * len(head) + "|"]
    for name, r in rows.items():
        told = f"{r['share']:.1%} | {r['plain'] / 1e12:.3g} | {r['further']:.3f}x | {r['first']:.2f}x |"
        lines.append(f"| {name} | {', '.join(r['places'])} | {told}")
    timed_seconds = seconds(options.seconds) if options.seconds else None
    if timed_seconds:
        told = "a further picture takes {further:.3f}x the plain one's {plain:.2f} s".format(**timed_seconds)
        lines.append(f"\nSprite World's DiT: {told}.")
    finish({"rows": rows, "seconds": timed_seconds}, options, "\n".join(lines))


if __name__ == "__main__":
    main()
