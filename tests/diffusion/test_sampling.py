"""The sampler, against DDIM's formula and its own promises about noise."""

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, keys_for
from clsp_plugin.diffusion.sampling import (
    CandidateNoise,
    Sampling,
    denoise,
    sample_candidates,
    to_float,
    to_uint8,
)
from clsp_plugin.diffusion.schedulers import SAMPLERS, make_scheduler
from clsp_plugin.errors import ClspError

SHAPE = (3, 8, 8)


def make_noise(indexes, candidates, share_anchor=False, seed=0):
    indexes, candidates = torch.tensor(indexes), torch.tensor(candidates)
    return CandidateNoise(seed, indexes, candidates, SHAPE, share_anchor)


def draw(purpose, seed, index, step, candidate=None):
    """One image's noise, from the names alone."""
    key = keys_for(derive_key(seed, purpose), torch.tensor([index]))
    if candidate is not None:
        key = keys_for(key, torch.tensor([candidate]))
    return key_normal(keys_for(key, torch.tensor([step])), 3 * 8 * 8).view(1, *SHAPE)


def ddim_in_float64(
    unet, index, candidate, steps, eta, betas, anchor=None, w=1.0, seed=0, clip=False
):
    """DDIM from its formulas (12) and (16), for one image; the estimate by hooks on the UNet."""
    abar = torch.cumprod(1 - betas.double(), 0)
    times = list(range(999, -1, -(1000 // steps)))
    x = draw(Purpose.NOISE, seed, index, 1000, candidate).double()
    for i, t in enumerate(times):
        if anchor is None:
            eps = unet(x, t).sample
        else:
            noise = draw(Purpose.ANCHOR_NOISE, seed, index, t, candidate).double()
            x_anchor = abar[t].sqrt() * anchor + (1 - abar[t]).sqrt() * noise
            features = []
            hook = unet.mid_block.register_forward_hook(lambda m, a, o, f=features: f.append(o))
            unet(x_anchor, t)
            unet(x, t)
            hook.remove()
            blend = w * features[1] + (1 - w) * features[0]
            hook = unet.mid_block.register_forward_hook(lambda m, a, o, b=blend: b)
            eps = unet(x, t).sample
            hook.remove()
        now, then = abar[t], abar[times[i + 1]] if i + 1 < steps else torch.tensor(1.0).double()
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x_0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
        if clip:  # and the noise is what then remains
            x_0 = x_0.clamp(-1, 1)
            eps = (x - now.sqrt() * x_0) / (1 - now).sqrt()
        fresh = draw(Purpose.NOISE, seed, index, t, candidate).double()
        x = then.sqrt() * x_0 + (1 - then - sigma**2).sqrt() * eps + sigma * fresh
    return x


def test_steps_are_the_papers():
    scheduler = make_scheduler(None, 100)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -10))
    assert scheduler.timesteps[-1] == 9
    torch.testing.assert_close(scheduler.betas, torch.linspace(1e-4, 0.02, 1000))
    assert not scheduler.config.clip_sample
    assert scheduler.final_alpha_cumprod == 1.0


@pytest.mark.parametrize(("steps", "first"), [(1, 999), (12, 995), (40, 999), (1000, 999)])
def test_every_step_goes_back_to_the_next(steps, first):
    times = make_scheduler(None, steps).timesteps.tolist()
    assert (len(times), times[0]) == (steps, first)
    # diffusers goes back by T // steps, wherever the next step is
    assert [t - 1000 // steps for t in times] == [*times[1:], -1]


def test_betas_are_those_of_training():
    trained = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200)
    scheduler = make_scheduler(trained.config, 50)
    assert torch.equal(scheduler.betas, trained.betas)
    assert scheduler.timesteps[0] == 199
    assert torch.equal(
        make_scheduler({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2}, 2).betas,
        torch.tensor([0.1, 0.2]),
    )


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({"prediction_type": "sample"}, 10, "predicts 'sample'"),
        ({"rescale_betas_zero_snr": True}, 10, "rescale_betas_zero_snr"),
        ({"beta_schedule": "unheard of"}, 10, "unheard of"),
        (None, 0, "steps=0 is not between 1 and the 1000"),
        (None, 30, "steps=30 .* are 27, 31, 32"),
        (None, 999, "steps=999 .* are 250, 500, 1000"),
        (None, 1001, "steps=1001"),
    ],
)
def test_schedulers_that_are_refused(config, steps, message):
    with pytest.raises(ClspError, match=message):
        make_scheduler(config, steps)


def test_the_fast_solver_takes_any_number_of_steps():
    for steps in range(1, 1001):
        scheduler = make_scheduler(None, steps, sampler="dpmpp")
        times = scheduler.timesteps.tolist()
        assert (len(times), len(set(times)), scheduler.num_inference_steps) == (steps,) * 3
        assert times == sorted(times, reverse=True)
        assert times[0] == 999
        assert times[-1] >= 0
    # where diffusers' own are as many, they are the same
    theirs = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    for steps in (12, 25, 50, 100):
        theirs.set_timesteps(steps)
        ours = make_scheduler(None, steps, sampler="dpmpp").timesteps
        assert torch.equal(ours, theirs.timesteps)
    with pytest.raises(ClspError, match="steps=1001 is not between 1 and the 1000"):
        make_scheduler(None, 1001, sampler="dpmpp")


@pytest.mark.parametrize("steps", [2, 13, 121])
def test_the_fast_solver_forgets_the_batch_before(unet, images, steps):
    scheduler = make_scheduler(None, steps, sampler="dpmpp")
    keys = {"indexes": torch.arange(2), "candidates": [0]}
    how = Sampling(sampler="dpmpp")
    first, again = (sample_candidates(unet, scheduler, images[:2], how, **keys) for _ in range(2))
    assert torch.equal(first, again)
    assert scheduler.num_inference_steps == steps


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
def test_w_one_is_unconditional_ddim(unet, eta):
    scheduler = make_scheduler(None, 10)
    anchors = torch.zeros(4, *SHAPE)
    x = denoise(unet, scheduler, anchors, make_noise([7, 3], [0, 5]), Sampling(w=1.0, eta=eta))
    unet = unet.double()
    with torch.no_grad():
        for row, (index, candidate) in enumerate([(7, 0), (7, 5), (3, 0), (3, 5)]):
            expected = ddim_in_float64(unet, index, candidate, 10, eta, scheduler.betas)
            scale = expected.abs().max()
            torch.testing.assert_close(
                x[row] / scale, expected[0].float() / scale, atol=1e-4, rtol=0
            )


@pytest.mark.parametrize("w", [0.0, 0.1, 0.6])
def test_candidates_against_the_formula(unet, w):
    scheduler = make_scheduler(None, 10)
    anchors = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = denoise(
        unet,
        scheduler,
        anchors.repeat_interleave(2, 0),
        make_noise([7, 3], [0, 5]),
        Sampling(w=w, eta=0.1),
    )
    unet = unet.double()
    with torch.no_grad():
        for row, (image, candidate) in enumerate([(0, 0), (0, 5), (1, 0), (1, 5)]):
            expected = ddim_in_float64(
                unet, [7, 3][image], candidate, 10, 0.1, scheduler.betas, anchors[image].double(), w
            )
            scale = expected.abs().max()
            torch.testing.assert_close(
                x[row] / scale, expected[0].float() / scale, atol=1e-4, rtol=0
            )


def test_clipping_every_step_is_asked_for(unet):
    plain, scheduler = make_scheduler(None, 10), make_scheduler(None, 10, clip=True)
    anchors, noise = torch.zeros(1, *SHAPE), make_noise([7], [5])
    x = denoise(unet, scheduler, anchors, noise, Sampling(w=1.0, eta=0.1))
    unclipped = denoise(unet, plain, anchors, noise, Sampling(w=1.0, eta=0.1))
    assert x.abs().max() <= 1 < unclipped.abs().max()
    with torch.no_grad():
        expected = ddim_in_float64(unet.double(), 7, 5, 10, 0.1, scheduler.betas, clip=True)
    torch.testing.assert_close(x, expected.float(), atol=1e-4, rtol=0)


def estimate_in_float64(unet, x, anchor, t, index, candidate, w, abar):
    """The interpolated estimate of one image's noise, by hooks."""
    noise = draw(Purpose.ANCHOR_NOISE, 0, index, t, candidate).double()
    x_anchor = abar[t].sqrt() * anchor + (1 - abar[t]).sqrt() * noise
    features = []
    hook = unet.mid_block.register_forward_hook(lambda m, a, o: features.append(o))
    unet(x_anchor, t)
    unet(x, t)
    hook.remove()
    hook = unet.mid_block.register_forward_hook(
        lambda m, a, o: w * features[1] + (1 - w) * features[0]
    )
    eps = unet(x, t).sample
    hook.remove()
    return eps


def ddpm_in_float64(x, t, then, eps, betas, abar, fresh, clip):
    """Algorithm 2 of DDPM where a step goes from t to ``then``, with the larger variance."""
    before = abar[then] if then >= 0 else torch.tensor(1.0).double()
    alpha = abar[t] / before
    if clip:
        x_0 = ((x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()).clamp(-1, 1)
        eps = (x - abar[t].sqrt() * x_0) / (1 - abar[t]).sqrt()
    mean = (x - (1 - alpha) / (1 - abar[t]).sqrt() * eps) / alpha.sqrt()
    return mean + ((1 - alpha).sqrt() * fresh if then >= 0 else 0)


class DpmPlusPlus:
    """DPM-Solver++(2M), algorithm 2 of Lu et al., 2022; first order at both ends."""

    def __init__(self):
        self.before = None

    def __call__(self, x, t, then, eps, abar, clip):
        a, s = abar[t].sqrt(), (1 - abar[t]).sqrt()
        x_0 = (x - s * eps) / a
        x_0 = x_0.clamp(-1, 1) if clip else x_0
        if then < 0:
            return x_0
        a_next, s_next = abar[then].sqrt(), (1 - abar[then]).sqrt()
        h = (a_next / s_next).log() - (a / s).log()
        blend = x_0
        if self.before is not None:
            r = self.before[1] / h
            blend = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * self.before[0]
        self.before = (x_0, h)
        return s_next / s * x - a_next * ((-h).exp() - 1) * blend


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_the_other_samplers_against_their_formulas(unet, sampler, clip):
    scheduler = make_scheduler(None, 10, clip, sampler)
    anchor = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eta = SAMPLERS[sampler]
    noise = make_noise([7], [5])
    for _ in range(2):  # the second run does not remember the first
        drawn = denoise(unet, scheduler, anchor, noise, Sampling(w=0.1, eta=eta))
    betas = scheduler.betas.double()
    abar = torch.cumprod(1 - betas, 0)
    times = list(range(999, -1, -100))
    assert scheduler.timesteps.tolist() == times
    unet, anchor, solver = unet.double(), anchor.double(), DpmPlusPlus()
    x = draw(Purpose.NOISE, 0, 7, 1000, 5).double()
    with torch.no_grad():
        for t, then in zip(times, [*times[1:], -1], strict=True):
            eps = estimate_in_float64(unet, x, anchor, t, 7, 5, 0.1, abar)
            if sampler == "ddpm":
                fresh = draw(Purpose.NOISE, 0, 7, t, 5).double()
                x = ddpm_in_float64(x, t, then, eps, betas, abar, fresh, clip)
            else:
                x = solver(x, t, then, eps, abar, clip)
    scale = x.abs().max()
    torch.testing.assert_close(drawn / scale, x.float() / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_the_other_samplers_do_not_see_the_batch(unet, images, sampler):
    scheduler = make_scheduler(None, 5, sampler=sampler)
    how = Sampling(seed=1, sampler=sampler)
    whole = sample_candidates(
        unet, scheduler, images[:4], how, indexes=torch.arange(4), candidates=range(3)
    )
    part = sample_candidates(
        unet, scheduler, images[2:3], how, indexes=torch.tensor([2]), candidates=[1]
    )
    assert (part[0, 0].int() - whole[2, 1].int()).abs().max() <= 1


def starts(unet, anchors, indexes, candidates, **keys):
    """What the UNet is given: the samples and the anchors at the first two steps."""
    seen = []
    hook = unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    out = sample_candidates(
        unet,
        make_scheduler(None, 2),
        anchors,
        Sampling(**keys),
        indexes=torch.tensor(indexes),
        candidates=candidates,
    )
    hook.remove()
    return seen, out


def test_noise_is_named_by_image_and_candidate(unet, images):
    together, _ = starts(unet, images[:3], [7, 3, 9], [0, 1, 2])
    alone, _ = starts(unet, images[1:2], [3], [2])
    rows = 3 * 1 + 2  # image 1 of the batch, candidate 2
    for step in (0, 1):  # the samples and the anchors of the first step
        assert torch.equal(together[step][rows], alone[step][0])
    assert torch.equal(alone[0], draw(Purpose.NOISE, 0, 3, 1000, 2))
    torch.testing.assert_close(together[2][rows], alone[2][0], atol=1e-3, rtol=0)
    initial = together[0].flatten(1)
    assert len(initial.unique(dim=0)) == 9
    assert abs(initial.mean()) < 0.1
    assert abs(initial.std() - 1) < 0.1


def test_another_batch_draws_the_same_images(unet, images):
    how = Sampling(seed=1)
    scheduler, indexes = make_scheduler(None, 5), torch.arange(10, 16)
    whole = sample_candidates(
        unet, scheduler, images[:6], how, indexes=indexes, candidates=range(3)
    )
    order = torch.tensor([4, 0, 2])
    part = sample_candidates(
        unet, scheduler, images[order], how, indexes=indexes[order], candidates=[2, 1]
    )
    difference = (part.int() - whole[order][:, [2, 1]].int()).abs()
    assert difference.max() <= 1  # another order of the same sums
    other = sample_candidates(
        unet, scheduler, images[:6], Sampling(seed=2), indexes=indexes, candidates=range(3)
    )
    assert (other.int() - whole.int()).abs().float().mean() > 10


def test_the_anchor_gets_fresh_noise_at_every_step(unet, images):
    abar = make_scheduler(None, 2).alphas_cumprod
    seen, _ = starts(unet, images[:1], [5], [4])
    for number, t in enumerate([999, 499]):
        noise = draw(Purpose.ANCHOR_NOISE, 0, 5, t, 4)
        expected = abar[t].sqrt() * to_float(images[:1]) + (1 - abar[t]).sqrt() * noise
        torch.testing.assert_close(seen[2 * number + 1], expected)


def test_a_shared_anchor_has_one_noise_for_its_candidates(unet, images):
    seen, out = starts(unet, images[:2], [5, 6], [0, 1, 2], share_anchor=True)
    assert [len(x) for x in seen] == [6, 2, 6, 2]
    assert out.shape == (2, 3, 8, 8, 3)
    abar = make_scheduler(None, 2).alphas_cumprod
    noise = draw(Purpose.ANCHOR_NOISE, 0, 5, 999)
    expected = abar[999].sqrt() * to_float(images[:1]) + (1 - abar[999]).sqrt() * noise
    torch.testing.assert_close(seen[1][:1], expected)
    own, _ = starts(unet, images[:2], [5, 6], [0, 1, 2])
    assert [len(x) for x in own] == [6, 6, 6, 6]
    assert torch.equal(own[0], seen[0])


@pytest.mark.parametrize("count", [1, 3])
def test_sharing_changes_nothing_but_the_noise(unet, images, count):
    scheduler, anchors = make_scheduler(None, 5), to_float(images[:2])
    shared = make_noise([5, 6], list(range(count)), share_anchor=True)
    own = make_noise([5, 6], list(range(count)))
    assert not torch.equal(own.anchor_keys, shared.anchor_keys.repeat_interleave(count))
    own.anchor_keys = shared.anchor_keys.repeat_interleave(count)
    a = denoise(unet, scheduler, anchors, shared, Sampling(w=0.1, eta=0.1))
    b = denoise(unet, scheduler, anchors.repeat_interleave(count, 0), own, Sampling(w=0.1, eta=0.1))
    torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), atol=1e-5, rtol=0)


def test_dropout_is_off(make_unet, images):
    unet = make_unet(dropout=0.5).train()
    first, second = (starts(unet, images[:2], [0, 1], [0])[1] for _ in range(2))
    assert torch.equal(first, second)


def test_pixels():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    x = to_float(levels)
    assert x.shape == (1, 3, 16, 16)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x + 0.4 / 127.5), levels)  # rounded, not cut off
    assert to_uint8(torch.tensor([-7.0, 7.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


@pytest.mark.parametrize("precision", ["32-true", "32", 32, "bf16-mixed"])
def test_precisions(unet, images, precision):
    _, plain = starts(unet, images[:2], [0, 1], [0])
    dtypes = []
    unet.conv_out.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    _, out = starts(unet, images[:2], [0, 1], [0], precision=precision)
    low = precision == "bf16-mixed"
    assert set(dtypes) == {torch.bfloat16 if low else torch.float32}
    assert torch.equal(out, plain) != low


@pytest.mark.parametrize("precision", ["64", "bf16-true", None, True, 16])
def test_an_unknown_precision_is_refused(unet, images, precision):
    with pytest.raises(ClspError, match=r"precision=.* is not one of 32-true, bf16-mixed"):
        starts(unet, images[:1], [0], [0], precision=precision)


def test_samples_that_are_not_finite_are_refused(unet, images):
    with torch.no_grad():
        unet.conv_out.bias.fill_(torch.inf)
    with pytest.raises(ClspError, match="of image 5 are not finite in float32"):
        starts(unet, images[:1], [5], [0])
    with (
        pytest.warns(UserWarning, match="sampled again in float32"),
        pytest.raises(ClspError, match="of image 5 are not finite in float32"),
    ):
        starts(unet, images[:1], [5], [0], precision="bf16-mixed")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_clipping_does_not_hide_an_infinity(unet, images, sampler):
    def overflow(module, args, out):
        return out.masked_fill(torch.ones_like(out, dtype=torch.bool), torch.inf)

    unet.conv_out.register_forward_hook(overflow)
    scheduler = make_scheduler(None, 2, clip=True, sampler=sampler)
    with pytest.raises(ClspError, match="not finite in float32"):
        sample_candidates(
            unet,
            scheduler,
            images[:1],
            Sampling(seed=0, w=0.1, eta=0.0),
            indexes=torch.tensor([0]),
            candidates=[0],
        )


def test_what_half_precision_is_too_small_for_is_sampled_again(unet, images):
    _, plain = starts(unet, images[:3], [0, 1, 2], [0, 1])

    def overflow(module, args, out):  # beyond what float16 holds, for the second image alone
        if out.dtype == torch.float16:
            out[2:4] *= 1e6
        return out

    unet.conv_in.register_forward_hook(overflow)
    with pytest.warns(UserWarning, match="precision=16-mixed were not finite; their images"):
        _, out = starts(unet, images[:3], [0, 1, 2], [0, 1], precision="16-mixed")
    assert (out[1].int() - plain[1].int()).abs().max() <= 1
    assert not torch.equal(out[[0, 2]], plain[[0, 2]])  # these stayed as they were


def test_a_bad_weight_is_refused_before_any_work(unet, images):
    with pytest.raises(ClspError, match="w=2"):
        starts(unet, images[:1], [0], [0], w=2)


def test_a_denoiser_that_predicts_the_velocity_ends_at_its_image():
    # a network that knows the image: v = sqrt(a) noise - sqrt(1 - a) image for any sample
    image = torch.rand(1, 3, 4, 4) * 2 - 1
    scheduler = make_scheduler({"prediction_type": "v_prediction"}, 10)
    x = torch.randn(1, 3, 4, 4)
    for t in scheduler.timesteps.tolist():
        a = scheduler.alphas_cumprod[t]
        noise = (x - a.sqrt() * image) / (1 - a).sqrt()
        x = scheduler.step(a.sqrt() * noise - (1 - a).sqrt() * image, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(x, image, rtol=1e-3, atol=1e-3)
