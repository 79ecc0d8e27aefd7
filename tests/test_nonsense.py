"""One argument of every measure at a time is replaced by nonsense: the answer is a `ForgetError`, or numbers without a NaN; never another exception,
never a warning. A NaN is allowed where it is the documented meaning of the input (MEANT).

What must be refused, and with which words, stands in REFUSED.
"""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from openworld_forget.metrics.classify import NoisePlan, Scores, Stages, classify, errors, margins, merge_scores
from openworld_forget.metrics.color import (
    TERMS, asked_table, cdi, cdi_table, color_drift, name_colors, name_histogram, transport_plan,
)
from openworld_forget.core import ForgetError
from openworld_forget.metrics.distribution import cmmd, cmmd_table, kid, kid_table
from openworld_forget.metrics.fidelity import clip_score, fidelity_table, image_alignment, real_ceiling, text_alignment
from openworld_forget.metrics.judges import lpips_judge
from openworld_forget.metrics.semantic import (
    accuracy, class_accuracy, class_drop, class_tests, concept_table, confusion, contrast_interval, drift_table,
    dropped_classes, expected_floor, flip_rate, image_weights, mean_class_accuracy, new_confusions, over_benchmarks,
    paired_interval, runs_interval, second_look, split_half, suspects, worst_class_drop,
)
from openworld_forget.metrics.stats import by_subject, holm, mean_interval, resample_weights, sign_test, spread, wilson
from openworld_forget.metrics.texture import band_energy, texture_table
from openworld_forget.metrics.uncertainty import average, check_sets, jackknife, leave_out, mean_shift2, rows
from openworld_forget.metrics.variety import (
    diversity, lpips_distances, lpips_table, paired_distance, variety_table, vendi,
)
from openworld_forget.worlds.tiny import tiny_world

r = np.random.default_rng(0)
IMAGES, MORE = (torch.from_numpy(r.integers(0, 256, (6, 3, 32, 32), np.uint8)) for _ in range(2))
F, G, O = (np.abs(r.normal(size=(6, 8))) + .1 for _ in range(3))
H, K = (r.dirichlet(np.ones(len(TERMS)), 6) for _ in range(2))
Y, B, A = np.repeat(range(3), 4), np.repeat(range(3), 4), r.integers(0, 3, 12)
C, GROUPS, DROPS, P = ['cat', 'dog', 'car'], np.arange(12)//2, r.normal(size=(2, 3)), np.array([.01, .5, .2])

def two(x, y=None): return {'a red dog': x, 'a blue car': x if y is None else y}
def looks(f): return {p: dict(clip=v, features=v, text=f[0]) for p, v in two(f).items()}
def distances(x, y): return lpips_distances(lpips_judge(), x, y)
D = two(distances(IMAGES, MORE))
NETS = dict(clip='x', features='y')

# measure -> (function, arguments that make sense)
SCORE = np.resize([1., 0, 0, -1], 12)
MEASURES = {
    'accuracy': (lambda y, a: accuracy(y, a, 3), Y, A),
    'accuracy, weights': (lambda y, a, w: accuracy(y, a, 3, w), Y, A, np.ones((2, 12))),
    'class_accuracy': (lambda y, a: class_accuracy(y, a, 3), Y, A),
    'mean_class_accuracy': (lambda y, a: mean_class_accuracy(y, a, 3), Y, A),
    'class_drop': (lambda y, b, a: class_drop(y, b, a, 3), Y, B, A),
    'flip_rate': (flip_rate, B, A),
    'confusion': (lambda y, a: confusion(y, a, 3), Y, A),
    'worst_class_drop': (worst_class_drop, DROPS),
    'wilson': (wilson, 3, 7),
    'holm': (holm, P),
    'sign_test': (sign_test, [3, 1], [0, 2]),
    'resample_weights': (lambda y, g: resample_weights(y, g, 5), Y, GROUPS),
    'class_tests': (class_tests, Y, C, B, A, GROUPS),
    'dropped_classes': (lambda *a: dropped_classes(*a) and 0.0, Y, C, B, A, GROUPS),
    'new_confusions': (new_confusions, Y, C, B, A, GROUPS),
    'paired_interval': (lambda y, b, a, g: np.nan_to_num(paired_interval('accuracy_drop', y, b, a, g, 9, C=3)), Y, B, A, GROUPS),
    'runs_interval': (lambda y, b, a, g: np.nan_to_num(runs_interval('accuracy_drop', y, b, a, g, 9, C=3)), Y, B, [A, B], GROUPS),
    'spread': (lambda x, y, g: spread(x, y, g)[0], SCORE, Y, GROUPS),
    'mean_interval': (lambda x, y, g: np.nan_to_num(mean_interval(x, y, g)), SCORE, Y, GROUPS),
    'contrast_interval': (lambda y, b, a, f: np.nan_to_num(contrast_interval('flip_rate', y, b, (1, a), (-1, f), C=3)), Y, B, A, B),
    'split_half': (lambda y, b, a, g: np.nan_to_num(split_half(y, b, a, g, 5)['rho']), Y, B, A, GROUPS),
    'leave_out': (lambda n: leave_out(n)[0], 4),
    'jackknife': (lambda v: jackknife(v).value, leave_out(5)@np.arange(5.)),
    'over_benchmarks': (
        lambda s, y, b, a: np.nan_to_num(paired_interval(over_benchmarks('accuracy_drop', s), y, b, a, n=9, C=3)),
        [1, 2],
        Y,
        B,
        np.where(Y, 1 + A % 2, 0),
    ),
    'drift_table': (lambda *a: drift_table(*a), Y, C, B, A, B, GROUPS),
    'concept_table': (lambda *a: concept_table(*a), Y, C, B, [A, B], [B, A], GROUPS),
    'suspects': (lambda d: suspects(d, 2), DROPS[0]),
    'second_look': (lambda *a: second_look(*a), C, Y, B == Y, A == Y, B == Y, GROUPS),
    'expected_floor': (lambda C, m, a: expected_floor(C, m, a, n=3), 3, 4, 80.0),
    'name_colors': (name_colors, r.random((4, 3))),
    'name_histogram': (name_histogram, IMAGES),
    'color_drift': (color_drift, IMAGES, MORE),
    **{f'cdi {k}': (lambda p, q, k=k: cdi(p, q, k), H, K) for k in ('tv', 'js', 'emd')},
    'transport_plan': (transport_plan, H[0], K[0]),
    'cdi_table': (lambda b, a, f: cdi_table(b, a, f), two(H), two(K), two(K, H)),
    'asked_table': (lambda b, a, f: asked_table(b, a, f), two(H), two(K), two(K, H)),
    'band_energy': (band_energy, IMAGES),
    'texture_table': (lambda b, a, f: texture_table(b, a, f), two(F), two(G), two(O)),
    'mean_shift2': (mean_shift2, F - G),
    'kid': (kid, F, G),
    'kid, subsets': (lambda n, s: kid(F, G, subsets=n, subset_size=s), 5, 3),
    'cmmd': (cmmd, F, G),
    'cmmd, sigma': (lambda s: cmmd(F, G, s), 10.0),
    'kid_table': (lambda b, a, f: kid_table(b, a, f, network='x'), two(F), two(G), two(O)),
    'cmmd_table': (lambda b, a, f: cmmd_table(b, a, f, network='x'), two(F), two(G), two(O)),
    'diversity': (diversity, F),
    'vendi': (vendi, F),
    'paired_distance': (paired_distance, F, G),
    'variety_table': (lambda b, a, f: variety_table(b, a, f, network='x'), two(F), two(G), two(O)),
    'lpips_distances': (distances, IMAGES, MORE),
    'lpips_table': (lambda d, f: lpips_table(d, f, network='x'), D, D),
    'image_alignment': (image_alignment, F, G),
    'real_ceiling': (real_ceiling, F),
    'text_alignment': (text_alignment, F, G[0]),
    'clip_score': (clip_score, np.array([0.1, -0.3])),
    'fidelity_table': (lambda g, refs, b: fidelity_table(g, refs, b, networks=NETS), looks(F), dict(clip=G, features=G), looks(O)),
}

def nonsense(x):
    "(name, what stands in the place of x)."
    if np.isscalar(x):
        yield from (('infinity', np.inf), ('minus one', -1), ('NaN', np.nan), ('half', .5))
        return
    yield from (
        ('None', None),
        ('a word', 'dog'),
        ('an object', object()),
        ('an empty list', []),
        ('words', ['cat', 'dog']),
        ('ragged', [[1, 2], [3]]),
        ('a dictionary', {'a': 1}),
        ('infinity', np.inf),
        ('minus one', -1),
        ('NaN', np.nan),
    )
    if isinstance(x, dict):
        first = next(iter(x))
        yield from (('no prompts', {}), ('a prompt missing', dict(list(x.items())[1:])), ('another prompt', {**x, 'more': x[first]}))
        for name, bad in nonsense(x[first]): yield f'one entry: {name}', {**x, first: bad}
    elif isinstance(x, torch.Tensor | np.ndarray | list) and len(x) and not isinstance(x[0], str):
        a = x if isinstance(x, torch.Tensor) else np.asarray(x)
        real = a.float() if isinstance(a, torch.Tensor) else a.astype(float)
        yield from (
            ('nothing', a[:0]),
            ('one', a[:1]),
            ('one more dimension', a[None]),
            ('one less', a[0]),
            ('twice as many', torch.cat([a, a]) if isinstance(a, torch.Tensor) else np.concatenate([a, a])),
            ('NaNs', real * np.nan),
            ('all zero', a * 0),
            ('huge', real * 1e30),
            ('negative', real - 1e3),
            ('text', np.asarray(a).astype(str)),
        )
        if a.ndim > 1: yield from (('last dimension cut', a[..., :-1]), ('last dimension empty', a[..., :0]), ('transposed', a.swapaxes(0, 1)))
        if a.ndim > 3:
            yield from (
                (
                    ('channels last', a.permute(0, 2, 3, 1)),
                    ('grey', a[:, :1]),
                    ('alpha', torch.cat([a, a[:, :1]], 1)),
                    ('int64', a.long()),
                    ('tiny', a[..., :4, :4]),
                )
                if isinstance(a, torch.Tensor)
                else ()
            )

# No images of a class; no pair of references; no spread in fewer than three images.
MEANT = {('second_look', 'all zero'), ('class_accuracy', 'all zero'), ('class_drop', 'all zero'), ('class_tests', 'all zero'), ('confusion', 'all zero'),
         ('real_ceiling', 'one')}
NO_SPREAD = ('low', 'high', 'floor', 'excess', 'excess_low', 'excess_high', 'ceiling', 'p_holm', 'df', 'shrink', 'excess_shrink')

def numbers(out):
    if isinstance(out, pd.DataFrame): out = out.drop(columns=[c for c in out if c in NO_SPREAD]).select_dtypes('number')
    if isinstance(out, dict): out = list(out.values())
    return np.asarray(out, float)

@pytest.mark.parametrize('measure', MEASURES)
def test_nonsense(measure):
    f, *args = MEASURES[measure]
    wrong, errors = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.isfinite(numbers(f(*args))).all()
        for i, x in enumerate(args):
            for name, bad in nonsense(x):
                try: out = numbers(f(*args[:i], bad, *args[i+1:]))
                except ForgetError as e:
                    errors += 1
                    assert len(str(e)) > 20
                except Exception as e: wrong.append(f'argument {i}, {name}: {type(e).__name__}: {str(e)[:100]}')
                else:
                    if np.isnan(out).any() and (measure, name) not in MEANT: wrong.append(f'argument {i}, {name}: NaN')
    assert not wrong, f'{len(wrong)} wrong, {errors} clear errors\n' + '\n'.join(wrong)

# ---------------------------------------------------------------- what must be refused
y, b, a, g = np.array([[0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 0, 2, 2, 2, 2], [0, 1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3]])
ONES, ZEROS = {'p': np.ones((3, 2)), 'q': np.zeros((2, 2))}, {'p': np.zeros((3, 2)), 'q': np.ones((2, 2))}
PROMPTS, PLAN = ['a dog', 'a cat', 'a car'], NoisePlan(steps=4)

def measured(call):
    "A call of a function of (world, latents), on the tiny world."
    def f():
        w = tiny_world()
        return call(w, torch.zeros(3, *w.latent_shape))
    return f

def scores(*seen):
    e = torch.full((1, 2, 4), torch.nan)
    e[..., list(seen)] = 1.
    return Scores(e, torch.zeros(1, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), 0)

REFUSED = {      # what is wrong -> (call, words of the error)
    'a share of nothing': (lambda: wilson(0, 0), '0 of 0 is no share'),
    'a negative share': (lambda: wilson(-1, 4), 'is no share'),
    'a share that is NaN': (lambda: wilson(np.nan, 4), 'is no share'),
    'a test of negative counts': (lambda: sign_test(-1, 2), 'whole numbers from 0'),
    'tests of unequal lists': (lambda: sign_test([1, 2], [3]), 'equally many of both'),
    'p values above one': (lambda: holm([2.]), 'between 0 and 1'),
    'groups of two classes': (lambda: resample_weights(y, [0]*8), 'images of two classes'),
    'groups for half of the images': (lambda: resample_weights(y, g[:4]), '4 groups for 8 images'),
    'scores for some of the images': (lambda: spread([1, 2], y), 'give one finite score'),
    'a subject too few': (lambda: by_subject([[1.], [2.]], ['a']), '1 subjects for 2 models'),
    'no answers': (lambda: accuracy([], []), 'at least one image'),
    'answers to other images': (lambda: accuracy([0, 1], [0]), 'must have classified the same images'),
    'a class that is not there': (lambda: class_drop([0, 3], [0, 1], [0, 1], 3), 'end at 2'),
    'a negative class': (lambda: accuracy([0, 1], [0, -1], 2), 'class numbers start at 0'),
    'classes as floats': (lambda: accuracy([0., 1.], [0, 1]), 'expected integers'),
    'classes by name': (lambda: flip_rate(['a'], ['b']), 'expected integers'),
    'answers of two models': (lambda: accuracy([0, 1], [[0, 1], [1, 1]]), 'one class number per image'),
    'weights of other images': (lambda: accuracy([0, 1], [0, 1], w=[1, 1, 1]), 'Weights must be'),
    'no classes': (lambda: class_drop([0], [0], [0], 0), 'There are 0 classes'),
    'no drops': (lambda: worst_class_drop([]), 'a number in every row'),
    'drops by name': (lambda: worst_class_drop(['cat']), 'drops'),
    'an unknown statistic': (lambda: paired_interval('acuracy_drop', y, b, a), "'accuracy_drop'"),
    'an unknown statistic of weights': (lambda: image_weights('accurcy', y), "'accurcy'"),
    'a level in percent': (lambda: paired_interval('flip_rate', y, b, a, level=95), '95 % is .95'),
    'a level in percent, of a contrast': (lambda: contrast_interval('flip_rate', y, b, (1, a), level=95), '95 % is .95'),
    'a contrast of maxima': (lambda: contrast_interval('worst_class_drop', y, b, (1, a)), 'needs a mean over images'),
    'a contrast of two and three runs': (lambda: contrast_interval('flip_rate', y, b, (1, [a]*2), (-1, [a]*3)), 'equally many'),
    'benchmarks of fewer classes': (lambda: paired_interval(over_benchmarks('accuracy_drop', [1, 1]), y, b, a), 'must add up'),
    'the drops of no class': (lambda: suspects([]), 'the drop of every class'),
    'no suspects asked for': (lambda: suspects([1.], 0), 'k >= 1'),
    'ties of other classes': (lambda: suspects([1.], 1, [1, 2]), 'as many ties'),
    'a second look at another class': (lambda: second_look(['cat'], [0, 1], [1, 1], [1, 1]), 'end at 0'),
    'right answers that are two': (lambda: second_look(['cat'], [0, 0], [1, 2], [1, 1]), 'true or false'),
    'a second look at fewer answers': (lambda: second_look(['cat'], [0, 0], [1, 1], [1]), 'answers for 2 images'),
    'fewer names than classes': (lambda: drift_table(y, ['cat', 'dog'], b, a), 'end at 1'),
    'an accuracy above 100 %': (lambda: expected_floor(10, 50, 120), 'an accuracy between 0 and 100 %'),

    'no prompts': (lambda: check_sets({}, {}), 'No prompts'),
    'no prompts of the adapted world': (lambda: check_sets(ONES, {}), 'No prompts'),
    'a prompt missing': (lambda: check_sets(ONES, {'p': ONES['p']}), 'other prompts'),
    'fewer seeds': (lambda: check_sets(ONES, {**ZEROS, 'q': ZEROS['q'][:1]}), 'Generate the same seeds'),
    'a smaller floor': (lambda: check_sets(ONES, ZEROS, {**ONES, 'p': ONES['p'][:2]}), 'A floor depends on n'),
    'another judge': (lambda: check_sets(ONES, {**ZEROS, 'q': np.ones((2, 3))}), 'same function or judge'),
    'a prompt without images': (lambda: check_sets(ONES, {**ZEROS, 'q': ZEROS['q'][:0]}), 'at least one image'),
    'features that are NaN': (lambda: check_sets(ONES, {**ZEROS, 'q': ZEROS['q']*np.nan}), 'Measure the images again'),
    'a list for a set': (lambda: check_sets(ONES, [1, 2]), 'a mapping from each prompt'),
    'no image': (lambda: leave_out(0), 'one image or more'),
    'values of no number of images': (lambda: jackknife(np.ones(6)), 'under `leave_out(n)`'),
    'values in a table': (lambda: jackknife([[1.]]), 'under `leave_out(n)`'),
    'no values': (lambda: jackknife(), 'No values'),
    'no estimates': (lambda: average([]), 'No estimates'),
    'rows without n': (lambda: rows('x', {'p': np.ones(1)}, {}), 'give n and a floor'),
    'rows with another floor': (lambda: rows('x', {'p': np.ones(3)}, {'p': 2}, {'p': np.ones(4)}), 'another number of images'),
    'rows of nothing': (lambda: rows('x', {}, {}), 'no prompts'),
    'an unknown end': (lambda: rows('x', {'p': np.ones(1)}, {'p': 1}, worst='most'), "'most'"),

    'a plan of no steps': (lambda: NoisePlan.make(steps=0), 'steps'),
    'a plan upside down': (lambda: NoisePlan.make(low=.9, high=.1), 'must be below'),
    'an unknown setting of a plan': (lambda: NoisePlan.make(step=3), 'step'),
    'stages that fall': (lambda: NoisePlan.make(steps=4, stages=(8, 2)), 'must increase'),
    'more classes later': (lambda: Stages.make(steps=(4, 12), keep=(1, 5)), 'must not increase'),
    'fewer steps later': (lambda: Stages.make(steps=(12, 4)), 'must increase'),
    'an unknown way to keep': (lambda: Stages.make(keep='sure'), 'keep'),
    'a paired test of one step': (lambda: Stages.make(steps=(1, 4), keep='confident'), '2 steps or more'),
    'latents of another shape': (measured(lambda w, z: errors(w, z[:, :2], PROMPTS, PLAN)), 'Make them with `world.encode`'),
    'no latents': (measured(lambda w, z: errors(w, z[:0], PROMPTS, PLAN)), 'Make them with `world.encode`'),
    'latents that are infinite': (measured(lambda w, z: errors(w, z + torch.inf, PROMPTS, PLAN)), 'non-finite values'),
    'no classes to choose from': (measured(lambda w, z: errors(w, z, [], PLAN)), 'one prompt per class'),
    'two classes of one prompt': (measured(lambda w, z: errors(w, z, ['a dog']*2, PLAN)), 'the same prompt'),
    'an unknown loss': (measured(lambda w, z: errors(w, z, PROMPTS, PLAN, loss='l3')), "'l3'"),
    'class 3 of three': (measured(lambda w, z: errors(w, z, PROMPTS, PLAN, which=[[3]]*3)), 'class numbers 0 to 2'),
    'a mask of other images': (measured(lambda w, z: errors(w, z, PROMPTS, PLAN, which=torch.ones(2, 3, dtype=torch.bool))), 'bool mask [3, 3]'),
    'a step outside the plan': (measured(lambda w, z: errors(w, z, PROMPTS, PLAN, steps=[4])), 'leave the plan'),
    'keys of fewer images': (measured(lambda w, z: errors(w, z, PROMPTS, PLAN.but(per_image=True), images=['x'])), '1 image keys'),
    'one class': (measured(lambda w, z: classify(w, z, ['0'], PLAN)), 'two classes or more'),
    'stages beyond the plan': (measured(lambda w, z: classify(w, z, PROMPTS, PLAN, Stages(steps=(4, 20)))), 'does not fit a plan of 4'),
    'steps that were not evaluated': (lambda: scores(0, 1).at(3), 'Not every class'),
    'margins beyond the steps': (lambda: margins(scores(0, 1).errors, torch.tensor([0]), 3), 'Ask for fewer steps'),
    'no shards': (lambda: merge_scores([]), 'one or more'),
}

@pytest.mark.parametrize('what', REFUSED)
def test_refused(what):
    call, words = REFUSED[what]
    with pytest.raises(ForgetError) as e: call()
    assert words in str(e.value)
