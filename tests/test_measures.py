"""What every measure promises, on inputs that nobody chose: hypothesis draws histograms, images, features, answers and weights.

The last test runs the published Diffusion Classifier, written out as plain loops, on the real mini world and demands the predictions and the cost of
`classify`.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linprog
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest
from torchmetrics.image.kid import poly_mmd

from openworld_forget.metrics.classify import Stages, classify
from openworld_forget.metrics.color import DISTANCES, GROUND, cdi, name_histogram, transport_plan
from openworld_forget.core import seed_for
from openworld_forget.metrics.distribution import cmmd, gaussian, kid, mmd2
from openworld_forget.metrics.fidelity import clip_score, image_alignment, real_ceiling, text_alignment
from openworld_forget.metrics.judges import unit
from openworld_forget.mini.data import benchmark
from openworld_forget.metrics.semantic import (
    STATS, WorstDrop, accuracy, class_accuracy, class_drop, confusion, drift_table, flip_rate, runs_interval,
    new_confusions, paired_interval, worst_class_drop,
)
from openworld_forget.metrics.stats import holm, resample_weights, sign_test, wilson
from openworld_forget.metrics.texture import band_energy
from openworld_forget.metrics.uncertainty import equal, jackknife, leave_out, mean_shift2, pair_mean, pairwise
from openworld_forget.metrics.variety import diversity, paired_distance, vendi
from openworld_forget.worlds.load import load_world

some, few = settings(max_examples=40), settings(max_examples=20)
SEED = st.integers(0, 2**32 - 1)

# ---------------------------------------------------------------- what is drawn
@st.composite
def histograms(draw, *shape):
    "Rows of shares of 0 to 40 pixels each: any number of colours, at least one. (Shares of whole pixels: none is below 1e-3 and none is almost another.)"
    h = draw(hnp.arrays(np.int64, (*shape, 11), elements=st.integers(0, 40))); h[..., 3] += h.sum(-1) == 0
    return h/h.sum(-1, keepdims=True)

@st.composite
def images(draw, most=4):
    "Few levels of colour, constant or noisy, of any small size."
    n, h, w, levels = draw(st.integers(1, most)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 255))
    r = np.random.default_rng(draw(SEED))
    return torch.from_numpy(r.integers(0, levels + 1, (n, 3, h, w)).astype(np.uint8))

@st.composite
def features(draw, n=(2, 12), d=(1, 8), sets=1):
    "`sets` matrices [n, d] of normal features, or copies of few, of any scale and offset, without zero rows."
    n, d, r = draw(st.integers(*n)), draw(st.integers(*d)), np.random.default_rng(draw(SEED))
    shift, scale, kinds = draw(st.sampled_from([0., 1., 10.])), 10.**draw(st.integers(-3, 3)), draw(st.integers(1, n))
    out = [scale*(r.normal(size=(n, d)) + shift)[r.integers(0, kinds, n)] for _ in range(sets)]
    out = [np.where(np.linalg.norm(x, axis=1, keepdims=True) > 1e-6*scale, x, scale) for x in out]
    return out[0] if sets == 1 else out

@st.composite
def answers(draw, preds=2, most=30):
    "Number of classes, labels, and predictions of which a drawn share is right."
    C, n, r = draw(st.integers(1, 6)), draw(st.integers(1, most)), np.random.default_rng(draw(SEED)); y = r.integers(0, C, n)
    return C, y, *[np.where(r.random(n) < draw(st.sampled_from([0., .5, .9, 1.])), y, r.integers(0, C, n)) for _ in range(preds)]

def weights(seed, n, draws=5): return np.random.default_rng(seed).multinomial(n, np.full(n, 1/n), draws)

# ---------------------------------------------------------------- colour
@some
@given(images(), SEED)
def test_naming(x, seed):
    h = name_histogram(x); assert h.shape == (len(x), 11) and h.min() >= 0 and np.allclose(h.sum(1), 1, rtol=0, atol=1e-12)
    p = np.random.default_rng(seed).permutation(x[0, 0].numel()); moved = x.flatten(2)[..., p].view_as(x)
    assert np.allclose(name_histogram(moved), h, rtol=0, atol=1e-12)                                       # where a pixel is does not matter
    assert np.array_equal(name_histogram(x.flip(0)), h[::-1]) and np.array_equal(name_histogram(x.float()/255), h)

@some
@given(histograms(3, 4), st.sampled_from(sorted(DISTANCES)))
def test_cdi_is_a_metric(h, distance):
    a, b, c = h; d = lambda p, q: cdi(p, q, distance); top = GROUND.max() if distance == 'emd' else 1
    assert (d(a, a) == 0).all() and np.allclose(d(a, b), d(b, a), rtol=0, atol=1e-7) and (d(a, b) >= 0).all() and (d(a, b) <= top + 1e-9).all()
    assert (d(a, c) <= d(a, b) + d(b, c) + 1e-7).all() and ((np.abs(a - b).max(-1) < 1e-12) == (d(a, b) < 1e-9)).all()
    assert np.allclose([cdi(p, q, distance) for p, q in zip(a, b)], d(a, b), rtol=0, atol=1e-7)            # alone or among others
    plain = dict(
        tv=lambda p, q: 1 - sum(map(min, p, q)),
        js=lambda p, q: jensenshannon(p, q, base=2),
        emd=lambda p, q: (
            linprog(
                GROUND.ravel(),
                A_eq=[[float((r if side else c) == i) for r in range(11) for c in range(11)] for side in (1, 0) for i in range(11)],
                b_eq=[*p, *q],
            ).fun
        ),
    )[distance]
    assert np.allclose([plain(p, q) for p, q in zip(a[:2], b)], d(a, b)[:2], rtol=0, atol=1e-6)            # scipy's, or written out

@some
@given(histograms(2))
def test_transport_plan(h):
    a, b = h; T = transport_plan(a, b).values
    assert (
        np.allclose(T.sum(1), a, rtol=0, atol=1e-6)
        and np.allclose(T.sum(0), b, rtol=0, atol=1e-6)
        and T.min() > -1e-7
        and np.isclose((T * GROUND).sum(), cdi(a, b, 'emd'), rtol=0, atol=1e-12)
    )
    # what both have stays; no colour travels further than the longest way
    assert np.allclose(np.diag(T), np.minimum(a, b), rtol=0, atol=1e-12) and cdi(a, b, 'emd') <= cdi(a, b)*GROUND.max() + 1e-7
    gap = GROUND[~np.eye(11, dtype=bool)].min(); assert cdi(a, b, 'emd') >= cdi(a, b)*gap - 1e-7

@some
@given(features(), SEED)
def test_unbiased_square(d, seed):
    n = len(d)
    slow = sum(float(d[i]@d[j]) for i in range(n) for j in range(n) if i != j)/(n*(n - 1))
    tol = 1e-9*max(1., np.abs(d).max()**2*d.shape[1])
    assert (
        math.isclose(mean_shift2(d), slow, rel_tol=1e-9, abs_tol=tol)
        and math.isclose(mean_shift2(d[::-1]), slow, rel_tol=1e-9, abs_tol=tol)
        and mean_shift2(d * 0) == 0
        and mean_shift2(-d) == mean_shift2(d)
    )
    w = weights(seed, n)/n; got = mean_shift2(d, w)
    # a pair of an image and its own copy is no pair
    for v, g in zip(w, got):
        mass = sum(v[i]*v[j] for i in range(n) for j in range(n) if i != j)
        want = sum(v[i]*v[j]*float(d[i]@d[j]) for i in range(n) for j in range(n) if i != j)/mass if mass > 1e-9 else math.nan
        assert (math.isnan(want) and math.isnan(g)) or math.isclose(g, want, rel_tol=1e-9, abs_tol=tol*n)

# ---------------------------------------------------------------- features
@some
@given(features(sets=2), st.floats(.01, 100))
def test_variety(xy, c):
    x, _ = xy; n = len(x); v, d = vendi(x), diversity(x)
    assert 1 - 1e-9 <= v <= n*(1 + 1e-9) and v <= min(n, x.shape[1])*(1 + 1e-6) and 0 <= d <= 2 + 1e-12
    assert math.isclose(vendi(c*x[::-1]), v, rel_tol=1e-6) and math.isclose(diversity(c*x[::-1]), d, rel_tol=1e-9, abs_tol=1e-12)
    u = unit(x)
    assert math.isclose(d, max(sum(1 - float(u[i]@u[j]) for i in range(n) for j in range(n) if i != j)/(n*(n - 1)), 0), rel_tol=1e-9, abs_tol=1e-12)
    # copies add nothing
    assert (
        math.isclose(vendi(np.repeat(x, 3, 0)), v, rel_tol=1e-6)
        and math.isclose(vendi(x, equal(n))[0], v)
        and vendi(x[[0] * 4]) < 1 + 1e-9
        and diversity(x[[0] * 4]) < 1e-12
    )

@some
@given(features(n=(4, 14), sets=2))
def test_mmd(xy):
    x, y = xy
    x, y = x/np.abs(x).max(), y/np.abs(y).max()
    m = len(y) - 1
    y = y[:m]
    k = lambda a, b: (float(a@b)/len(a) + 1)**3
    g = lambda a, b: math.exp(-float(((a - b)**2).sum())/2)
    def slow(x, y, k):
        off = lambda a: sum(k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j)/(len(a)*(len(a) - 1))
        return off(x) + off(y) - 2*sum(k(a, b) for a in x for b in y)/(len(x)*len(y))
    for kernel, plain in ((None, k), (gaussian(1.), g)):
        f = lambda a, b: mmd2(equal(len(a)), equal(len(b)), a, b, *([kernel] if kernel else []))[0]
        assert (
            math.isclose(f(x, y), slow(x, y, plain), rel_tol=1e-9, abs_tol=1e-10)
            and math.isclose(f(x, y), f(y, x), rel_tol=1e-9, abs_tol=1e-10)
            and math.isclose(f(x[::-1], y), f(x, y), rel_tol=1e-9, abs_tol=1e-10)
        )
    a, b = x[:m], y
    assert math.isclose(mmd2(equal(m), equal(m), a, b)[0], poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item(), rel_tol=1e-9, abs_tol=1e-10)
    assert math.isclose(cmmd(x, 3*y), 1000*slow(unit(x), unit(y), lambda a, b: math.exp(-float(((a - b)**2).sum())/200)), rel_tol=1e-9, abs_tol=1e-8)

@few
@given(features(n=(5, 16), sets=2), SEED)
def test_kid(xy, seed):
    "Torchmetrics' mean over subsets is the mean over those subsets of our estimator; the seed decides, and nothing else."
    x, y = (f/np.abs(f).max() for f in xy)
    seed %= 1000
    k = kid(x, y, subsets=4, seed=seed)
    s = k['subset_size']
    g = torch.Generator().manual_seed(seed_for(seed, 'kid'))
    draws = [(torch.randperm(len(x), generator=g)[:s].numpy(), torch.randperm(len(y), generator=g)[:s].numpy()) for _ in range(4)]
    assert (
        math.isclose(k['value'], np.mean([mmd2(equal(s), equal(s), x[i], y[j])[0] for i, j in draws]), rel_tol=1e-9, abs_tol=1e-10)
        and kid(x, y, subsets=4, seed=seed) == k
        and k['std'] >= 0
    )

@some
@given(features(sets=2), st.floats(.01, 100))
def test_paired_distance(xy, c):
    x, y = xy; d = paired_distance(x, y); cos = [float(a@b)/math.sqrt(float(a@a)*float(b@b)) for a, b in zip(x, y)]
    assert (
        (d >= 0).all()
        and (d <= 2 + 1e-12).all()
        and (paired_distance(x, x) == 0).all()
        and np.allclose(d, 1 - np.array(cos), rtol=0, atol=1e-12)
        and np.array_equal(d, paired_distance(y, x))
    )
    assert (
        (paired_distance(x, c * x) < 1e-30).all()
        and np.allclose(paired_distance(x, c * y), d, rtol=0, atol=1e-14)
        and np.allclose(paired_distance(x, -x), 2)
    )
    # zero exactly where the directions are equal
    apart = np.abs(unit(x) - unit(y)).max(1); assert (d[apart > 1e-8] > 0).all() and (d[apart == 0] == 0).all()

@some
@given(features(sets=2), st.floats(.01, 100))
def test_alignment(xy, c):
    x, y = xy; i, t = image_alignment(x, y), text_alignment(x, y)
    for v in (i, t, text_alignment(x, y[0])): assert (np.abs(v) <= 1 + 1e-12).all() and v.shape == (len(x),)
    assert (
        np.allclose(image_alignment(c * x, y * 7), i, rtol=0, atol=1e-12)
        and np.allclose(text_alignment(c * x, y * 7), t, rtol=0, atol=1e-12)
        and np.allclose(t, 1 - paired_distance(x, y), rtol=0, atol=1e-12)
    )
    assert (
        math.isclose(i.mean(), image_alignment(y, x).mean(), abs_tol=1e-12)
        and np.allclose(i, np.mean([text_alignment(x, r) for r in y], 0), rtol=0, atol=1e-12)
        and np.allclose(text_alignment(x, x), 1)
    )
    n = len(x)
    assert math.isclose(real_ceiling(x), 1 - diversity(x), abs_tol=1e-9) and math.isclose(
        (image_alignment(x, x).mean() * n - 1) / (n - 1), real_ceiling(x), abs_tol=1e-9
    )
    assert (clip_score(t) >= 0).all() and (clip_score(t) <= 2.5 + 1e-9).all() and np.allclose(clip_score(t), [2.5*v if v > 0 else 0 for v in t])

@few
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 60), SEED)
def test_texture(h, w, brighter, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(40, 190, (3, 3, h, w)).astype(np.uint8)); b = band_energy(x)
    assert (
        b.shape == (3, int(math.log2(min(h, w))) - 1)
        and np.isfinite(b).all()
        and np.allclose(band_energy(x.flip(0)), b[::-1])
        and np.allclose(band_energy(x[1:2]), b[1:2])
    )
    assert (
        np.allclose(band_energy(x + brighter), b, atol=1e-6)
        and np.allclose(band_energy(x.flip(-1)), b, atol=1e-6)
        and (band_energy(x[..., :1].expand(-1, -1, -1, w) * 0) <= b).all()
    )

# ---------------------------------------------------------------- answers
@some
@given(answers())
def test_drops(case):
    C, y, b, a = case; drop = class_drop(y, b, a, C); stat = {k: f(y, b, a, C) for k, f in STATS.items()}
    assert (
        np.array_equal(drop, -class_drop(y, a, b, C), equal_nan=True)
        and np.nanmax(np.abs(drop)) <= 100
        and STATS['accuracy_drop'](y, a, b, C) == -stat['accuracy_drop']
        and np.nanmax(class_drop(y, b, b, C)) == 0
    )
    assert (
        flip_rate(b, a) == flip_rate(a, b)
        and flip_rate(b, b) == 0
        and stat['flip_rate'] >= abs(stat['accuracy_drop']) - 1e-9
        and stat['worst_class_drop'] >= stat['mean_class_drop'] - 1e-9
    )
    assert math.isclose(accuracy(y, a), 100 * sum(i == j for i, j in zip(y, a)) / len(y)) and math.isclose(
        accuracy(y, a), np.nansum(class_accuracy(y, a, C) * np.bincount(y, minlength=C)) / len(y), abs_tol=1e-9
    )
    p = np.random.default_rng(len(y)).permutation(len(y))
    assert np.allclose([f(y[p], b[p], a[p], C) for f in STATS.values()], [*stat.values()], rtol=0, atol=1e-9)

@some
@given(answers())
def test_confusion(case):
    C, y, b, a = case; m, there = confusion(y, a, C), np.bincount(y, minlength=C) > 0
    assert (
        np.allclose(m[there].sum(1), 100)
        and np.isnan(m[~there]).all()
        and (m[there] >= 0).all()
        and np.allclose(np.diag(m), class_accuracy(y, a, C), equal_nan=True)
    )
    t = new_confusions(y, [*range(C)], b, a); change = m - confusion(y, b, C)
    assert (
        np.allclose(t.change, change[t['class'], t.answer])
        and (t['class'] != t.answer).all()
        and (t.p_holm >= t.p).all()
        and t.p.between(0, 1).all()
        and (t.change.diff().dropna() <= 0).all()
        and not len(new_confusions(y, [*range(C)], a, a))
    )

@some
@given(st.integers(1, 5), st.integers(1, 6), SEED)
def test_worst_class_drop(K, C, seed):
    d = np.random.default_rng(seed).uniform(-100, 100, (K, C))
    w = worst_class_drop(d)
    assert (
        isinstance(w, WorstDrop)
        and w.mean_of_max >= w.max_of_mean - 1e-9
        and w.max_of_mean >= d.mean() - 1e-9
        and np.allclose(worst_class_drop(d[::-1]), w)
    )
    assert (
        math.isclose(w.mean_of_max, np.mean([max(r) for r in d]))
        and math.isclose(w.max_of_mean, max(np.mean(c) for c in d.T))
        and np.allclose(worst_class_drop(d[0]), d[0].max())
    )

@some
@given(answers(most=12), SEED)
def test_a_weight_is_a_repetition(case, seed):
    "Of every statistic: integer weights are the same set with images repeated; many weights at once are one after the other."
    C, y, b, a = case; W = weights(seed, len(y)); r = [np.repeat(np.arange(len(y)), w) for w in W]
    for f in STATS.values(): assert np.allclose(f(y, b, a, C, W), [f(y[i], b[i], a[i], C) for i in r], rtol=0, atol=1e-9)

@some
@given(features(sets=2), SEED)
def test_a_weight_is_a_repetition_of_features(xy, seed):
    x, _ = xy; n = len(x); W = weights(seed, n)
    assert (
        np.allclose(vendi(x, W / n), [vendi(np.repeat(x, w, 0)) for w in W], rtol=1e-6)
        and np.allclose(vendi(x, leave_out(n), chunk=2), vendi(x, leave_out(n)))
        and np.allclose(leave_out(n).sum(1), 1)
    )
    d = paired_distance(*xy); assert np.allclose(W/n@d, [np.repeat(d, w).mean() for w in W], rtol=0, atol=1e-12)
    # repeated, without the pairs of an image and its own copy
    for w, v in zip(W, diversity(x, W/n)):
        i = np.repeat(np.arange(n), w)
        u = unit(x)[i]
        other = i[:, None] != i
        assert (np.isnan(v) and not other.any()) or math.isclose(v, max((1 - u@u.T)[other].mean(), 0), rel_tol=1e-6, abs_tol=1e-9)

@few
@given(answers(), SEED)
def test_intervals(case, seed):
    "Value inside, one model or many; antisymmetric in base and adapted; the order of images and the names of groups do not matter; maxima have none."
    C, y, b, a = case
    groups = [f'{c}/{i % 3}' for i, c in enumerate(y)]
    p = np.random.default_rng(seed).permutation(len(y))
    for k, f in STATS.items():
        for g in (None, groups):
            lo, hi = paired_interval(k, y, b, a, g, C=C)
            if k == 'worst_class_drop' or np.isnan(lo):
                assert np.isnan([lo, hi]).all()
                continue
            v = f(y, b, a, C)
            assert lo - 1e-9 <= v <= hi + 1e-9 or 'drop' in k and lo <= v*.5 <= hi          # few changes: the centre is drawn towards none
            assert (lo, hi) == runs_interval(k, y, b, [a, a], g, C=C) and -100 - 1e-9 <= v <= 100 + 1e-9
            shuffled = paired_interval(k, y[p], b[p], a[p], None if g is None else [f'x{g[i]}' for i in p], C=C)
            assert np.allclose(shuffled, (lo, hi))
            if k == 'accuracy_drop': assert np.allclose(paired_interval(k, y, a, b, g, C=C), (-hi, -lo))
    W = resample_weights(y, groups, 20, seed % 1000)
    assert all((W[:, y == c].sum(1) > 0).all() for c in set(y))
    assert all((W[:, [i for i, h in enumerate(groups) if h == q]].std(1) == 0).all() for q in set(groups))
    t = drift_table(y, [*'abcdef'[:C]], b, b)
    flat = t[t.measure.str.contains('drop|flip')]
    assert (flat.value == 0).all() and not (flat.low > 0).any() and not (flat.high < 0).any()

@some
@given(features(sets=1), SEED)
def test_leaving_out(x, seed):
    "Of a mean: the textbook's variance; a shift of all values moves the interval; nothing varies, nothing is uncertain; pairs two ways."
    x = x[0] if isinstance(x, tuple) else x
    v, n = np.asarray(x, float)[:, 0], len(x)
    e = jackknife(leave_out(n)@v)
    if n < 2: assert np.isnan(e.variance); return
    assert math.isclose(e.variance, v.var(ddof=1)/n, rel_tol=1e-6, abs_tol=1e-12) and math.isclose(e.value, v.mean(), rel_tol=1e-9, abs_tol=1e-12)
    up = jackknife(leave_out(n)@(v + 3))
    assert np.allclose(up.interval(), np.add(e.interval(), 3), equal_nan=True) and jackknife(leave_out(n)@(v*0 + 2)).variance < 1e-20
    if n > 4:
        K = np.asarray(x, float)@np.asarray(x, float).T
        a, b = jackknife(pair_mean(leave_out(n), K)), pairwise(float(pair_mean(equal(n), K)[0]), K/(n*(n - 1)), np.zeros(n))
        assert math.isclose(a.value, b.value) and a.variance >= 0 <= b.variance and a.shrink <= 1 + 1e-9 >= b.shrink

@some
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm(p):
    p, h = np.array(p), holm(p); o = p.argsort(kind='stable')
    # monotone, between p and Bonferroni
    assert (
        (h >= p).all()
        and (h <= 1).all()
        and (np.diff(h[o]) >= 0).all()
        and (h <= np.minimum(1, len(p) * p) + 1e-15).all()
        and np.allclose(holm(p[::-1]), h[::-1])
    )
    # the same rejections as step by step
    for alpha in (.01, .05, .5):
        m = sum(all(p[o][j]*(len(p) - j) <= alpha for j in range(k + 1)) for k in range(len(p)))
        assert (h <= alpha).sum() == m

@some
@given(st.integers(0, 40), st.integers(0, 40))
def test_exact_tests(lost, gained):
    one, two = sign_test(lost, gained), sign_test(lost, gained, True); n = lost + gained
    assert (
        np.isclose(one, binomtest(lost, n, alternative='greater').pvalue if n else 1, rtol=1e-9)
        and np.isclose(two, binomtest(lost, n).pvalue if n else 1, rtol=1e-9)
        and two == sign_test(gained, lost, True)
    )
    if n:
        ci = binomtest(lost, n).proportion_ci(method='wilson')
        p, lo, hi = wilson(lost, n, 1.959963984540054)
        assert np.allclose((p, lo, hi), (100*lost/n, 100*ci.low, 100*ci.high), rtol=0, atol=1e-9) and lo <= p + 1e-9 and p <= hi + 1e-9

# ---------------------------------------------------------------- the published procedure, on the real mini world
@pytest.fixture(scope='module')
def animals():
    w, b = load_world('mini', 'cpu'), benchmark('animals', 'heldout', per_class=1)
    return w, w.encode(b.images[:8].float()/255), [b.template.format(c) for c in b.classes], {}

@torch.no_grad()
def published(world, latents, prompts, stages, seed, loss, known):
    """Li et al. 2023, slow and plain: image by image, stage by stage, timestep by timestep, class by class, one forward at a time; nothing is
    evaluated twice, the mean is over all that was seen. `known` keeps forwards for the other loss."""
    # mid-points of k cells
    k = stages.steps[-1]
    plan = stages.plan(seed).but(stages=())
    grid = [int(1000*(2*i + 1)/(2*k)) for i in range(k)]
    assert sorted(plan.timesteps(world).tolist()) == grid
    eps = dict(zip(plan.timesteps(world).tolist(), plan.noise(world)))
    states = {p: world.encode_text([p]) for p in prompts}
    answers, forwards = [], 0
    for i, z in enumerate(latents):
        left, error = list(range(len(prompts))), {}
        for n, keep in zip(stages.steps, stages.keep):
            seen = {t for t, _ in error}
            for t in (grid[int((j + .5)*k/n)] for j in range(n)):
                if t in seen: continue
                for c in left:
                    a = world.scheduler.alphas_cumprod[t]
                    noised = (a.sqrt()*z + (1 - a).sqrt()*eps[t])[None]
                    time = torch.tensor([t])
                    forwards += 1
                    if (i, t, c) not in known: known[i, t, c] = world.unet(noised, time, states[prompts[c]]).sample
                    out = known[i, t, c]; out = out if world.prediction == 'epsilon' else a.sqrt()*out + (1 - a).sqrt()*noised
                    d = eps[t] - out[0]; error[t, c] = (d.abs() if loss == 'l1' else d**2).mean().item()
            mean = {c: np.mean([e for (_, q), e in error.items() if q == c]) for c in left}; left = sorted(left, key=mean.get)[:keep]
        answers.append(left[0])
    return torch.tensor(answers), forwards

@pytest.mark.parametrize('loss', ['l2', 'l1'])
def test_published_procedure(animals, loss):
    w, z, prompts, known = animals; stages = Stages(steps=(3, 7, 12), keep=(6, 3, 1))                              # these grids do not nest
    s, (want, forwards) = classify(w, z, prompts, stages.plan(seed=3), stages, loss=loss), published(w, z, prompts, stages, 3, loss, known)
    assert torch.equal(s.predictions, want) and s.forwards == forwards == int((~s.errors.isnan()).sum()) and forwards < 8*len(prompts)*12
