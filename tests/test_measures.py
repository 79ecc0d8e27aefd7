"""What every measure promises on inputs that nobody chose (hypothesis draws histograms, images, features, answers and weights). What it promises to the
references written out in `reference.py` is asserted, row by row, where it is shown: `nbs/metrics/12_numerics.ipynb`, a case of test_notebooks.py.

The last test runs the published Diffusion Classifier, written out as plain loops, on the real mini world and demands the predictions and the cost of
`classify`.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest
from torchmetrics.image.kid import poly_mmd

import reference
from openworld_forget.core import rng, seed_for
from openworld_forget.metrics.classify import Stages, classify
from openworld_forget.metrics.color import DISTANCES, GROUND, cdi, cdi_table, name_histogram, transport_plan
from openworld_forget.metrics.coverage import answers as drawn_answers
from openworld_forget.metrics.distribution import cmmd, cmmd_table, gaussian, kid, kid_table, mmd2
from openworld_forget.metrics.fidelity import clip_score, image_alignment, real_ceiling, text_alignment
from openworld_forget.metrics.judges import unit
from openworld_forget.metrics.semantic import (
    STATS, WorstDrop, accuracy, class_accuracy, class_drop, confusion, drift_table, dropped_classes, flip_rate,
    new_confusions, paired_interval, runs_interval, worst_class_drop,
)
from openworld_forget.metrics.stats import holm, resample_weights, sign_test, wilson
from openworld_forget.metrics.texture import band_energy, texture_table
from openworld_forget.metrics.uncertainty import equal, jackknife, leave_out, mean_shift2, pair_mean, pairwise
from openworld_forget.metrics.variety import diversity, paired_distance, variety_table, vendi
from openworld_forget.mini.data import benchmark
from openworld_forget.worlds.load import load_world
from reference import bell, cosine, cube, dot, mean_over_pairs, mmd, published

some, few = settings(max_examples=40), settings(max_examples=20)
SEED = st.integers(0, 2**32 - 1)

def near(a, b, atol=1e-12): return np.allclose(a, b, rtol=0, atol=atol)

# ---------------------------------------------------------------- what is drawn
@st.composite
def histograms(draw, *shape):
    "Rows of shares of 0 to 40 pixels each: any number of colours, at least one. (Shares of whole pixels: none is below 1e-3 and none is almost another.)"
    h = draw(hnp.arrays(np.int64, (*shape, 11), elements=st.integers(0, 40)))
    h[..., 3] += h.sum(-1) == 0
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
    C, n, r = draw(st.integers(1, 6)), draw(st.integers(1, most)), np.random.default_rng(draw(SEED))
    y = r.integers(0, C, n)
    return C, y, *[np.where(r.random(n) < draw(st.sampled_from([0., .5, .9, 1.])), y, r.integers(0, C, n)) for _ in range(preds)]

def weights(seed, n, draws=5): return np.random.default_rng(seed).multinomial(n, np.full(n, 1/n), draws)

# ---------------------------------------------------------------- colour
@some
@given(images(), SEED)
def test_naming(x, seed):
    "Shares; where a pixel is does not matter, nor its neighbour images, nor whether levels are integers."
    h = name_histogram(x)
    assert h.shape == (len(x), 11) and h.min() >= 0 and near(h.sum(1), 1)
    p = np.random.default_rng(seed).permutation(x[0, 0].numel())
    assert near(name_histogram(x.flatten(2)[..., p].view_as(x)), h)
    assert np.array_equal(name_histogram(x.flip(0)), h[::-1])
    assert np.array_equal(name_histogram(x.float()/255), h)

@some
@given(histograms(3, 4), st.sampled_from(sorted(DISTANCES)))
def test_cdi_is_a_metric(h, distance):
    a, b, c = h
    d = lambda p, q: cdi(p, q, distance)
    assert (d(a, a) == 0).all() and near(d(a, b), d(b, a), 1e-7) and (d(a, b) >= 0).all()
    assert (d(a, b) <= (GROUND.max() if distance == 'emd' else 1) + 1e-9).all()
    assert (d(a, c) <= d(a, b) + d(b, c) + 1e-7).all()
    assert ((np.abs(a - b).max(-1) < 1e-12) == (d(a, b) < 1e-9)).all()

@some
@given(histograms(2, 4), st.sampled_from(sorted(DISTANCES)))
def test_cdi_is_the_reference(h, distance):
    "Scipy's, or written out; alone or among others."
    a, b = h
    d = cdi(a, b, distance)
    assert near([cdi(p, q, distance) for p, q in zip(a, b)], d, 1e-7)
    assert near([reference.HISTOGRAM_DISTANCES[distance](p, q) for p, q in zip(a[:2], b)], d[:2], 1e-6)

@some
@given(histograms(2))
def test_transport_plan(h):
    "Marginals and cost; what both have stays; no colour travels further than the longest way, none less than the shortest."
    a, b = h
    T = transport_plan(a, b).values
    assert near(T.sum(1), a, 1e-6) and near(T.sum(0), b, 1e-6) and T.min() > -1e-7
    assert near((T*GROUND).sum(), cdi(a, b, 'emd')) and near(np.diag(T), np.minimum(a, b))
    assert GROUND[~np.eye(11, dtype=bool)].min()*cdi(a, b) - 1e-7 <= cdi(a, b, 'emd') <= cdi(a, b)*GROUND.max() + 1e-7

@some
@given(features(), SEED)
def test_unbiased_square(d, seed):
    "A double loop; a pair of an image and its own copy is no pair."
    n, slow = len(d), mean_over_pairs(dot, d)
    tol = 1e-9*max(1., np.abs(d).max()**2*d.shape[1])
    same = lambda a, b, tol=tol: (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=tol)
    assert same(mean_shift2(d), slow) and same(mean_shift2(d[::-1]), slow)
    assert mean_shift2(d*0) == 0 and mean_shift2(-d) == mean_shift2(d)
    W = weights(seed, n)/n
    assert all(same(v, mean_over_pairs(dot, d, w), tol*n) for w, v in zip(W, mean_shift2(d, W)))

# ---------------------------------------------------------------- features
@some
@given(features(), st.floats(.01, 100))
def test_variety(x, c):
    n, v, d = len(x), vendi(x), diversity(x)
    assert 1 - 1e-9 <= v <= n*(1 + 1e-9) and v <= min(n, x.shape[1])*(1 + 1e-6) and 0 <= d <= 2 + 1e-12
    assert math.isclose(vendi(c*x[::-1]), v, rel_tol=1e-6) and math.isclose(diversity(c*x[::-1]), d, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(d, max(mean_over_pairs(lambda a, b: 1 - cosine(a, b), x), 0), rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(vendi(np.repeat(x, 3, 0)), v, rel_tol=1e-6) and math.isclose(vendi(x, equal(n))[0], v)     # copies add nothing
    assert vendi(x[[0]*4]) < 1 + 1e-9 and diversity(x[[0]*4]) < 1e-12

@some
@given(features(n=(4, 14), sets=2))
def test_mmd(xy):
    x, y = (f/np.abs(f).max() for f in xy)
    y = y[:-1]
    close = lambda a, b, tol=1e-10: math.isclose(a, b, rel_tol=1e-9, abs_tol=tol)
    for kernel, plain in (((), cube), ((gaussian(1.),), lambda a, b: bell(a, b, 1.))):
        f = lambda a, b: mmd2(equal(len(a)), equal(len(b)), a, b, *kernel)[0]
        assert close(f(x, y), mmd(x, y, plain)) and close(f(x, y), f(y, x)) and close(f(x[::-1], y), f(x, y))
    m = len(y)
    assert close(mmd2(equal(m), equal(m), x[:m], y)[0], poly_mmd(torch.from_numpy(x[:m]), torch.from_numpy(y)).item())
    assert close(cmmd(x, 3*y), 1000*mmd(unit(x), unit(y), bell), 1e-8)

@few
@given(features(n=(5, 16), sets=2), SEED)
def test_kid(xy, seed):
    "Torchmetrics' mean over subsets is the mean over those subsets of our estimator; the seed decides, and nothing else."
    x, y = (f/np.abs(f).max() for f in xy)
    seed %= 1000
    k = kid(x, y, subsets=4, seed=seed)
    s, g = k['subset_size'], torch.Generator().manual_seed(seed_for(seed, 'kid'))
    draws = [(torch.randperm(len(x), generator=g)[:s].numpy(), torch.randperm(len(y), generator=g)[:s].numpy()) for _ in range(4)]
    want = np.mean([mmd2(equal(s), equal(s), x[i], y[j])[0] for i, j in draws])
    assert math.isclose(k['value'], want, rel_tol=1e-9, abs_tol=1e-10)
    assert kid(x, y, subsets=4, seed=seed) == k and k['std'] >= 0

@some
@given(features(sets=2), st.floats(.01, 100))
def test_paired_distance(xy, c):
    x, y = xy
    d = paired_distance(x, y)
    assert (d >= 0).all() and (d <= 2 + 1e-12).all() and near(d, [1 - cosine(a, b) for a, b in zip(x, y)])
    assert np.array_equal(d, paired_distance(y, x)) and near(paired_distance(x, c*y), d, 1e-14)
    assert (paired_distance(x, x) == 0).all() and (paired_distance(x, c*x) < 1e-30).all() and np.allclose(paired_distance(x, -x), 2)
    apart = np.abs(unit(x) - unit(y)).max(1)                                   # zero exactly where the directions are equal
    assert (d[apart > 1e-8] > 0).all() and (d[apart == 0] == 0).all()

@some
@given(features(sets=2), st.floats(.01, 100))
def test_alignment(xy, c):
    x, y = xy
    i, t = image_alignment(x, y), text_alignment(x, y)
    for v in (i, t, text_alignment(x, y[0])): assert (np.abs(v) <= 1 + 1e-12).all() and v.shape == (len(x),)
    assert near(image_alignment(c*x, y*7), i) and near(text_alignment(c*x, y*7), t)
    assert near(t, 1 - paired_distance(x, y)) and np.allclose(text_alignment(x, x), 1)
    assert near(i, np.mean([text_alignment(x, r) for r in y], 0)) and math.isclose(i.mean(), image_alignment(y, x).mean(), abs_tol=1e-12)

@some
@given(features())
def test_ceiling(x):
    n, top = len(x), real_ceiling(x)
    assert math.isclose(top, 1 - diversity(x), abs_tol=1e-9) and math.isclose((image_alignment(x, x).mean()*n - 1)/(n - 1), top, abs_tol=1e-9)

@some
@given(features(sets=2))
def test_clip_score(xy):
    t = text_alignment(*xy)
    assert (clip_score(t) >= 0).all() and (clip_score(t) <= 2.5 + 1e-9).all() and np.allclose(clip_score(t), [2.5*v if v > 0 else 0 for v in t])

@few
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 60), SEED)
def test_texture(h, w, brighter, seed):
    "Image by image; neither brightness nor mirroring; nothing has less than a black image."
    x = torch.from_numpy(np.random.default_rng(seed).integers(40, 190, (3, 3, h, w)).astype(np.uint8))
    b = band_energy(x)
    assert b.shape == (3, int(math.log2(min(h, w))) - 1) and np.isfinite(b).all()
    assert np.allclose(band_energy(x.flip(0)), b[::-1]) and np.allclose(band_energy(x[1:2]), b[1:2])
    assert np.allclose(band_energy(x + brighter), b, atol=1e-6) and np.allclose(band_energy(x.flip(-1)), b, atol=1e-6)
    assert (band_energy(x[..., :1].expand(-1, -1, -1, w)*0) <= b).all()

# ---------------------------------------------------------------- answers
@some
@given(answers())
def test_drops(case):
    "Antisymmetric drops, symmetric flips; a model against itself has none; no drop of a class is below the mean's."
    C, y, b, a = case
    drop, stat = class_drop(y, b, a, C), {k: f(y, b, a, C) for k, f in STATS.items()}
    assert np.array_equal(drop, -class_drop(y, a, b, C), equal_nan=True) and np.nanmax(np.abs(drop)) <= 100
    assert STATS['accuracy_drop'](y, a, b, C) == -stat['accuracy_drop'] and np.nanmax(class_drop(y, b, b, C)) == 0
    assert flip_rate(b, a) == flip_rate(a, b) and flip_rate(b, b) == 0
    assert stat['flip_rate'] >= abs(stat['accuracy_drop']) - 1e-9 and stat['worst_class_drop'] >= stat['mean_class_drop'] - 1e-9

@some
@given(answers())
def test_accuracy(case):
    "Counted; the mean of the classes' weighted by their images; the order of images does not matter."
    C, y, b, a = case
    assert math.isclose(accuracy(y, a), reference.percent(sum(i == j for i, j in zip(y, a)), len(y)))
    by_class = np.nansum(class_accuracy(y, a, C)*np.bincount(y, minlength=C))/len(y)
    assert math.isclose(accuracy(y, a), by_class, abs_tol=1e-9)
    p = np.random.default_rng(len(y)).permutation(len(y))
    assert near([f(y[p], b[p], a[p], C) for f in STATS.values()], [f(y, b, a, C) for f in STATS.values()], 1e-9)

@some
@given(answers())
def test_confusion(case):
    C, y, b, a = case
    m, there = confusion(y, a, C), np.bincount(y, minlength=C) > 0
    assert np.allclose(m[there].sum(1), 100) and np.isnan(m[~there]).all() and (m[there] >= 0).all()
    assert np.allclose(np.diag(m), class_accuracy(y, a, C), equal_nan=True)

@some
@given(answers())
def test_new_confusions(case):
    C, y, b, a = case
    t, change = new_confusions(y, [*range(C)], b, a), confusion(y, a, C) - confusion(y, b, C)
    assert np.allclose(t.change, change[t['class'], t.answer]) and (t['class'] != t.answer).all()
    assert (t.p_holm >= t.p).all() and t.p.between(0, 1).all() and (t.change.diff().dropna() <= 0).all()
    assert not len(new_confusions(y, [*range(C)], a, a))
    back = new_confusions(y, [*range(C)], a, b)                                # the other way round: the changes are mirrored
    assert near(sorted(back.change), sorted(-t.change), 1e-9)

@some
@given(st.integers(1, 5), st.integers(1, 6), SEED)
def test_worst_class_drop(K, C, seed):
    d = np.random.default_rng(seed).uniform(-100, 100, (K, C))
    w = worst_class_drop(d)
    assert isinstance(w, WorstDrop) and w.mean_of_max >= w.max_of_mean - 1e-9 and w.max_of_mean >= d.mean() - 1e-9
    assert math.isclose(w.mean_of_max, np.mean([max(r) for r in d])) and math.isclose(w.max_of_mean, max(np.mean(c) for c in d.T))
    assert np.allclose(worst_class_drop(d[::-1]), w) and np.allclose(worst_class_drop(d[0]), d[0].max())

@some
@given(answers(most=12), SEED)
def test_a_weight_is_a_repetition(case, seed):
    "Of every statistic: integer weights are the same set with images repeated; many weights at once are one after the other."
    C, y, b, a = case
    W = weights(seed, len(y))
    repeated = [np.repeat(np.arange(len(y)), w) for w in W]
    for f in STATS.values(): assert near(f(y, b, a, C, W), [f(y[i], b[i], a[i], C) for i in repeated], 1e-9)

@some
@given(features(sets=2), SEED)
def test_a_weight_is_a_repetition_of_features(xy, seed):
    x, n = xy[0], len(xy[0])
    W = weights(seed, n)
    assert np.allclose(vendi(x, W/n), [vendi(np.repeat(x, w, 0)) for w in W], rtol=1e-6)
    assert np.allclose(vendi(x, leave_out(n), chunk=2), vendi(x, leave_out(n))) and np.allclose(leave_out(n).sum(1), 1)
    d = paired_distance(*xy)
    assert near(W/n@d, [np.repeat(d, w).mean() for w in W])
    for w, v in zip(W, diversity(x, W/n)):                                     # without the pairs of an image and its own copy
        i = np.repeat(np.arange(n), w)
        u, other = unit(x)[i], i[:, None] != i
        assert (np.isnan(v) and not other.any()) or math.isclose(v, max((1 - u@u.T)[other].mean(), 0), rel_tol=1e-6, abs_tol=1e-9)

# ---------------------------------------------------------------- intervals
@few
@given(answers(), SEED)
def test_intervals(case, seed):
    "Value inside, one run or many; antisymmetric in base and adapted; the order of images and the names of groups do not matter; maxima have none."
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

@few
@given(answers(), SEED)
def test_resamples(case, seed):
    "Every class keeps its number of images where its drawings are of one size; a drawing counts as one."
    y = case[1]
    groups = [f'{c}/{i % 3}' for i, c in enumerate(y)]
    W = resample_weights(y, groups, 20, seed % 1000)
    assert all((W[:, y == c].sum(1) > 0).all() for c in set(y))
    assert all((W[:, [i for i, h in enumerate(groups) if h == q]].std(1) == 0).all() for q in set(groups))
    alone = resample_weights(y, n=20, seed=seed % 1000)
    assert all(np.allclose(alone[:, y == c].sum(1), (y == c).sum()) for c in set(y))

@few
@given(answers())
def test_nothing_changed(case):
    "A base against itself: every drop and flip is zero, and no interval excludes zero."
    C, y, b, _ = case
    t = drift_table(y, [*'abcdef'[:C]], b, b)
    flat = t[t.measure.str.contains('drop|flip')]
    assert (flat.value == 0).all() and not (flat.low > 0).any() and not (flat.high < 0).any()

@some
@given(features(), SEED)
def test_leaving_out(x, seed):
    "Of a mean: the textbook's variance; a shift of all values moves the interval; nothing varies, nothing is uncertain."
    v, n = x[:, 0], len(x)
    e = jackknife(leave_out(n)@v)
    assert math.isclose(e.variance, v.var(ddof=1)/n, rel_tol=1e-6, abs_tol=1e-12) and math.isclose(e.value, v.mean(), rel_tol=1e-9, abs_tol=1e-12)
    up = jackknife(leave_out(n)@(v + 3))
    assert np.allclose(up.interval(), np.add(e.interval(), 3), equal_nan=True) and jackknife(leave_out(n)@(v*0 + 2)).variance < 1e-20

@some
@given(features(n=(5, 12)))
def test_pairs_two_ways(x):
    "The same number from images left out and from the matrix of pairs; curvature is taken away, never added."
    n, K = len(x), x@x.T
    a, b = jackknife(pair_mean(leave_out(n), K)), pairwise(float(pair_mean(equal(n), K)[0]), K/(n*(n - 1)), np.zeros(n))
    assert math.isclose(a.value, b.value) and a.variance >= 0 <= b.variance and a.shrink <= 1 + 1e-9 >= b.shrink

# ---------------------------------------------------------------- tests of many classes
@some
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm(p):
    "Step by step; monotone, between p and Bonferroni; the same rejections."
    p, h = np.array(p), holm(p)
    o = p.argsort(kind='stable')
    assert near(h, reference.step_down(p), 1e-15) and near(holm(p[::-1]), h[::-1])
    assert (h >= p).all() and (h <= np.minimum(1, len(p)*p) + 1e-15).all() and (np.diff(h[o]) >= 0).all()
    for alpha in (.01, .05, .5):
        assert (h <= alpha).sum() == sum(all(p[o][j]*(len(p) - j) <= alpha for j in range(k + 1)) for k in range(len(p)))

@some
@given(st.integers(0, 40), st.integers(0, 40))
def test_exact_tests(lost, gained):
    one, two, n = sign_test(lost, gained), sign_test(lost, gained, True), lost + gained
    assert np.isclose(one, binomtest(lost, n, alternative='greater').pvalue if n else 1, rtol=1e-9)
    assert np.isclose(two, binomtest(lost, n).pvalue if n else 1, rtol=1e-9) and two == sign_test(gained, lost, True)

@some
@given(st.integers(1, 40), st.data())
def test_wilson(n, data):
    hits = data.draw(st.integers(0, n))
    ci = binomtest(hits, n).proportion_ci(method='wilson')
    p, lo, hi = wilson(hits, n, 1.959963984540054)
    assert near((p, lo, hi), (100*hits/n, 100*ci.low, 100*ci.high), 1e-9) and lo <= p + 1e-9 and p <= hi + 1e-9

def test_false_alarms():
    "No drift, ten classes: a class is said to have dropped in at most 5 % of the worlds (200 worlds see that to within three points)."
    hits = 0
    for i in range(200):
        y, _, base, adapted, _ = drawn_answers(rng(i, 'holm'), 10, 20, (20,), .8, .05, .2)
        hits += bool(dropped_classes(y, range(10), *(np.where(ok, y, (y + 1) % 10) for ok in (base, adapted[0]))))
    assert hits <= 15

# ---------------------------------------------------------------- the published procedure, on the real mini world
@pytest.fixture(scope='module')
def animals():
    w, b = load_world('mini', 'cpu'), benchmark('animals', 'heldout', per_class=1)
    return w, w.encode(b.images[:4].float()/255), [b.template.format(c) for c in b.classes], {}

@pytest.mark.parametrize('loss', ['l2', 'l1'])
def test_published_procedure(animals, loss):
    w, z, prompts, known = animals
    stages = Stages(steps=(3, 7, 12), keep=(6, 3, 1))                          # these grids do not nest
    predict = lambda noised, time, text: w.unet(noised, time, text).sample
    want, forwards = published(w, z, prompts, stages, 3, loss, predict, known)
    s = classify(w, z, prompts, stages.plan(seed=3), stages, loss=loss)
    assert torch.equal(s.predictions, want)
    assert s.forwards == forwards == int((~s.errors.isnan()).sum()) and forwards < 4*len(prompts)*12

def two_images(features: int):
    "Base, adapted and floor: two prompts of two images, the fewest that a budget may ask for."
    r = rng(0, 'two images', features)
    return [{p: r.dirichlet(np.ones(features), 2) for p in ('a red ball', 'a blue ball')} for _ in range(3)]

@pytest.mark.parametrize('table, features', [(cdi_table, 11), (texture_table, 5), (variety_table, 8), (kid_table, 8), (cmmd_table, 8)])
def test_two_images_a_prompt_have_values(table, features):
    more = {} if table in (cdi_table, texture_table) else dict(network='x')
    t = table(*two_images(features), **more)
    assert np.isfinite(t.value).all() and len(t)
    squared = t[t.measure.isin(['cdi_squared', 'texture_squared', 'diversity'])]
    assert squared.low.isna().all(), 'nothing can be left out of two images where the number needs both'
