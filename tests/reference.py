"""Every measure once more, slow and plain, and what each measure promises.

The references share no code with the package beyond its constants: loops that anyone can read, scipy, torchmetrics. `test_measures.py` holds the
measures to them; `nbs/metrics/12_numerics.ipynb` prints the promises with the deviations that were found.
"""
import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import linprog
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, norm
from torchmetrics.image.kid import poly_mmd

from openworld_forget.core import generator, rng, seed_for
from openworld_forget.metrics.color import (
    GRID, GROUND, TERMS, cdi, name_colors, name_histogram, naming_table, transport_plan,
)
from openworld_forget.metrics.distribution import cmmd, gaussian, kid, mmd2
from openworld_forget.metrics.fidelity import clip_score, image_alignment, real_ceiling, text_alignment
from openworld_forget.metrics.judges import efficientnet_judge, lpips_judge, unit
from openworld_forget.metrics.semantic import (
    accuracy, class_accuracy, class_drop, confusion, flip_rate, mean_class_accuracy, new_confusions, paired_interval,
    worst_class_drop,
)
from openworld_forget.metrics.stats import holm, sign_test, wilson
from openworld_forget.metrics.texture import LUMA, band_energy
from openworld_forget.metrics.uncertainty import equal, mean_shift2
from openworld_forget.metrics.variety import diversity, lpips_distances, paired_distance, vendi

# ---------------------------------------------------------------- references: vectors, sets, histograms
def cosine(a, b) -> float: return float(a@b)/math.sqrt(float(a@a)*float(b@b))

def pairs(n): return ((i, j) for i in range(n) for j in range(n) if i != j)

def mean_over_pairs(k, x, w=None) -> float:
    "Mean of k(x_i, x_j) over i != j, under weights w; NaN where they leave one image only."
    w = [1/len(x)]*len(x) if w is None else w
    mass = math.fsum(w[i]*w[j] for i, j in pairs(len(x)))
    return math.fsum(w[i]*w[j]*k(x[i], x[j]) for i, j in pairs(len(x)))/mass if mass > 1e-9 else math.nan

def dot(a, b) -> float: return float(a@b)

def cube(a, b) -> float:
    "KID's kernel."
    return (float(a@b)/len(a) + 1)**3

def bell(a, b, sigma=10.) -> float:
    "CMMD's kernel."
    return math.exp(-float(((a - b)**2).sum())/(2*sigma**2))

def mmd(x, y, k) -> float:
    "Squared maximum mean discrepancy without the pairs of an image with itself."
    return mean_over_pairs(k, x) + mean_over_pairs(k, y) - 2*math.fsum(k(a, b) for a in x for b in y)/len(x)/len(y)

def effective_number(f) -> float:
    "The Vendi score, from singular values of the unit features."
    u = f/np.linalg.norm(f, axis=1, keepdims=True)
    return math.exp(-math.fsum(l*math.log(l) for l in np.linalg.svd(u/len(u)**.5, compute_uv=False)**2 if l > 0))

def earth_mover(p, q) -> float:
    "The full linear program, without the mass that stays."
    marginals = np.concatenate([np.kron(np.eye(11), np.ones(11)), np.kron(np.ones(11), np.eye(11))])
    return linprog(GROUND.ravel(), A_eq=marginals, b_eq=np.concatenate([p, q])).fun

HISTOGRAM_DISTANCES = dict(
    tv=lambda p, q: sum(abs(a - b) for a, b in zip(p, q))/2,
    js=lambda p, q: jensenshannon(p, q, base=2),
    emd=earth_mover,
)

# ---------------------------------------------------------------- references: pictures
def octaves(image) -> np.ndarray:
    "Texture of one small square image by the definition: a sum over pixels for every frequency."
    n = image.shape[-1]
    w = np.array([math.sin(math.pi*i/(n - 1))**2 for i in range(n)])
    y = sum(c*image[k].numpy()/255 for k, c in enumerate(LUMA))
    W = np.outer(w, w)
    y = (y - (y*W).sum()/W.sum())*W
    out, rounding = np.zeros(int(math.log2(n)) - 1), sum(c*c for c in LUMA)/255**2/12
    for u, v in itertools.product(range(-n//2, n//2), repeat=2):
        if u or v:
            z = sum(y[i, j]*np.exp(-2j*math.pi*(u*i + v*j)/n) for i in range(n) for j in range(n))
            out[min(int(math.log2(math.hypot(u, v)) + 1e-12), len(out) - 1)] += abs(z)**2/((W*W).sum()*n*n) + rounding/(n*n)
    return 10*np.log10(out)

def lpips_by_layers(net, x, y) -> float:
    "LPIPS of two normalized images [1, 3, H, W] with the weights of an `AlexLpips`, map by map, as in the paper's formula."
    total = 0.
    for i, (stride, pad, pool) in enumerate(net.STRIDE_PAD_POOL):
        kernel, bias, weight = (getattr(net, f'{k}{i}') for k in ('kernel', 'bias', 'weight'))
        x, y = (F.relu(F.conv2d(F.max_pool2d(a, 3, 2) if pool else a, kernel, bias, stride, pad)) for a in (x, y))
        d = x/x.norm(dim=1, keepdim=True).clamp_min(1e-10) - y/y.norm(dim=1, keepdim=True).clamp_min(1e-10)
        total += (weight.view(-1, 1, 1)*d[0].double().square()).sum(0).mean().item()
    return total

# ---------------------------------------------------------------- references: answers
def percent(k, n) -> float: return float(Fraction(100*int(k), int(n)))

def step_down(p) -> list:
    "Holm: the k-th smallest of n is multiplied by n - k, and none may be smaller than one before it."
    out, most = [0.]*len(p), 0.
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        most = max(most, min(1., (len(p) - k)*p[i]))
        out[i] = most
    return out

@torch.no_grad()
def published(world, latents, prompts, stages, seed, loss, predict, known=None):
    """Li et al. 2023, slow and plain: image by image, stage by stage, timestep by timestep, class by class, one forward at a time; nothing is
    evaluated twice, the mean is over all that was seen. `predict(noised, time, text state)` is the network; `known` keeps its outputs for the other
    loss. Predictions, and the number of forwards."""
    k, known = stages.steps[-1], {} if known is None else known
    plan = stages.plan(seed).but(stages=())
    grid = [int(1000*(2*i + 1)/(2*k)) for i in range(k)]                       # mid-points of k cells
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
                a = world.scheduler.alphas_cumprod[t]
                noised = (a.sqrt()*z + (1 - a).sqrt()*eps[t])[None]
                for c in left:
                    forwards += 1
                    if (i, t, c) not in known: known[i, t, c] = predict(noised, torch.tensor([t]), states[prompts[c]])
                    out = known[i, t, c]
                    if world.prediction != 'epsilon': out = a.sqrt()*out + (1 - a).sqrt()*noised
                    d = eps[t] - out[0]
                    error[t, c] = (d.abs() if loss == 'l1' else d**2).mean().item()
            mean = {c: np.mean([e for (_, q), e in error.items() if q == c]) for c in left}
            left = sorted(left, key=mean.get)[:keep]
        answers.append(left[0])
    return torch.tensor(answers), forwards

# ---------------------------------------------------------------- the pictures on which promises are kept
yy, xx = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='ij')
SHAPES = dict(
    disc=lambda x, y: x*x + y*y <= 196,
    square=lambda x, y: (x.abs() <= 12) & (y.abs() <= 12),
    ring=lambda x, y: (x*x + y*y <= 330) & (x*x + y*y > 133),
    cross=lambda x, y: ((x.abs() <= 4) & (y.abs() <= 19)) | ((y.abs() <= 4) & (x.abs() <= 19)),
)
KINDS = ['disc', 'square', 'ring']

def draw(kinds, key, n=24):
    "n images [n, 3, 64, 64]: image i shows the shape kinds[i % len(kinds)]; place and colours are drawn for (key, i) and do not depend on the shape."
    out = torch.empty(n, 3, 64, 64, dtype=torch.uint8)
    for i in range(n):
        r = rng(0, 'numerics', key, i)
        cx, cy = r.integers(24, 40, 2)
        hues = (r.uniform(.02, .45), .45, .60), (r.uniform(.05, .2), .15, .75)
        on, off = (torch.from_numpy(np.round(255*hsv_to_rgb(c))).view(3, 1, 1) for c in hues)
        out[i] = torch.where(SHAPES[kinds[i % len(kinds)]](xx - float(cx), yy - float(cy)), on, off).to(torch.uint8)
    return out

def luma(x): return (x*torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)

def tint(x, s):
    "Pull the colour of every pixel towards pink by the share s; its luminance stays."
    x, pink = x.float(), torch.tensor((110., 30., 90.)).view(1, 3, 1, 1)
    y = luma(x)
    return (y + (1 - s)*(x - y) + s*(pink - luma(pink))).clamp(0, 255).round().to(torch.uint8)

def noisy(x, s): return (x.float() + s*torch.randn(x.shape, generator=generator(0, 'numerics noise'))).clamp(0, 255).round().to(torch.uint8)

def pictures():
    "A world X [24, 3, 64, 64], the same world changed (Y: tinted and noisy), and X with other seeds."
    X, other = draw(KINDS, 'a'), draw(KINDS, 'b')
    return SimpleNamespace(X=X, other=other, Y=noisy(tint(X, .4), 6), order=rng(0, 'order').permutation(24))

# ---------------------------------------------------------------- promises
class Promises(list):
    "(measure, promise, largest deviation, tolerance): `p(measure, promise, got, want, tolerance)` adds one; NaN must meet NaN."
    def __call__(self, measure, what, got, want, tolerance):
        g, w = np.broadcast_arrays(np.asarray(got, float), np.asarray(want, float))
        both = np.isnan(g) & np.isnan(w)
        self.append((measure, what, np.where(both, 0, np.abs(np.where(both, 0, g) - np.where(both, 0, w))).max(), tolerance))

    @property
    def broken(self): return [p for p in self if not p[2] <= p[3]]

def term(a, b=None):
    "A histogram of one colour, or half and half of two."
    return (np.eye(11)[TERMS.index(a)] + np.eye(11)[TERMS.index(b or a)])/2

def colours(p: Promises, s: SimpleNamespace):
    "Colour names and their distances."
    X, Y, order = s.X, s.Y, s.order
    H, G = s.H, s.G = name_histogram(X), name_histogram(Y)
    p('name_histogram', 'rows sum to 1', G.sum(1), 1, 1e-12)
    p('name_histogram', 'image by image', np.concatenate([name_histogram(Y[i:i+1]) for i in range(24)]), G, 0)
    p('name_histogram', 'order of images', name_histogram(Y[order]), G[order], 0)
    p('name_histogram', 'order of pixels', name_histogram(Y.flatten(2)[..., rng(0, 'pixels').permutation(4096)].view_as(Y)), G, 1e-12)
    p('name_histogram', 'floats in [0, 1] as 8 bits', name_histogram(Y.float()/255), G, 0)
    table = RegularGridInterpolator((np.linspace(0, 1, GRID),)*3, naming_table().reshape(GRID, GRID, GRID, 11))
    pixels = Y[:3].flatten(2).mT.numpy()/255
    p('name_histogram', "reference: scipy's interpolation of the table", G[:3], [table(v).mean(0) for v in pixels], 1e-12)
    p('name_histogram', 'the kernel itself, without a table', G[:3], [name_colors(v).mean(0) for v in pixels], .01)
    black_white = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    black_white[..., 0, 0] = 255
    p('name_histogram', 'by hand: 1 of 4 pixels white, 3 of 4 black',
      name_histogram(black_white), (name_colors([[1., 1, 1]]) + 3*name_colors([[0., 0, 0]]))/4, 1e-12)

    # all black -> half black, half white; m = (3/4, 1/4)
    hand = dict(tv=1/2, js=math.sqrt((math.log2(4/3) + math.log2(2/3)/2 + 1/2)/2), emd=GROUND[0, 9]/2)
    for k, loose, who in (('tv', 1e-15, 'a loop'), ('js', 1e-12, 'scipy'), ('emd', 1e-7, 'the full linear program')):
        p(f'cdi {k}', 'identity', cdi(H, H, k), 0, 0)
        p(f'cdi {k}', 'symmetry', cdi(H, G, k), cdi(G, H, k), {'emd': 1e-7}.get(k, 0))
        p(f'cdi {k}', 'order of images (mean histograms)', cdi(H[order].mean(0), G[order].mean(0), k), cdi(H.mean(0), G.mean(0), k), 1e-9)
        p(f'cdi {k}', 'pair by pair', [cdi(a, b, k) for a, b in zip(H[:3], G[:3])], cdi(H[:3], G[:3], k), {'emd': 1e-12}.get(k, 0))
        p(f'cdi {k}', 'by hand: 1 of 2 blacks becomes white', cdi(term('black'), term('black', 'white'), k), hand[k], 1e-15)
        p(f'cdi {k}', f'reference: {who}', cdi(H[:3], G[:3], k), [HISTOGRAM_DISTANCES[k](a, b) for a, b in zip(H[:3], G[:3])], loose)
    T = transport_plan(H.mean(0), G.mean(0))
    p('transport_plan', 'rows and columns are the histograms', [*T.values.sum(1), *T.values.sum(0)], [*H.mean(0), *G.mean(0)], 1e-7)
    p('transport_plan', 'its cost is cdi emd', (T.values*GROUND).sum(), cdi(H.mean(0), G.mean(0), 'emd'), 1e-15)
    p('transport_plan', 'identity: nothing moves', transport_plan(H[0], H[0]), np.diag(H[0]), 0)

    p('cdi_squared', 'identity', mean_shift2(H - H), 0, 0)
    p('cdi_squared', 'symmetry', mean_shift2(G - H), mean_shift2(H - G), 0)
    p('cdi_squared', 'order of images', mean_shift2((G - H)[order]), mean_shift2(G - H), 1e-15)
    p('cdi_squared', 'by hand: pairs 0, 1, 1, so 2/3', mean_shift2([[1, 0], [0, 1], [1, 1]]), 2/3, 1e-15)
    p('cdi_squared', 'reference: double loop', mean_shift2(G - H), mean_over_pairs(dot, G - H), 1e-15)
    p('cdi_squared', 'twice the change, four times the value', mean_shift2(2*(G - H)), 4*mean_shift2(G - H), 0)

def texture(p: Promises, s: SimpleNamespace):
    "Energy per octave."
    X, Y, order = s.X, s.Y, s.order
    E0, E1 = s.E0, s.E1 = band_energy(X), band_energy(Y)
    p('texture', 'identity', band_energy(X) - E0, 0, 0)
    p('texture', 'image by image', np.concatenate([band_energy(Y[i:i+1]) for i in range(24)]), E1, 1e-9)
    p('texture', 'order of images', band_energy(Y[order]), E1[order], 1e-9)
    p('texture', 'mirrored images', band_energy(Y.flip(-1)), E1, 1e-9)
    p('texture', 'brighter by 20 levels', band_energy(X + 20), E0, 1e-9)
    win, lum = np.outer(*[np.hanning(64)]*2), np.einsum('nchw,c->nhw', Y.numpy()/255, LUMA)
    lum = lum - (lum*win).sum((1, 2), keepdims=True)/win.sum()
    rounding = sum(c*c for c in LUMA)/255**2/12
    p('texture', 'octaves add up to the windowed variance (Parseval)',
      (10**(E1/10)).sum(1) - rounding*4095/4096, ((lum*win)**2).sum((1, 2))/(win**2).sum(), 1e-15)
    wave = (127 + 100*torch.cos(2*math.pi*7*xx/64)).round().to(torch.uint8).expand(1, 3, 64, 64)
    p('texture', 'by hand: a wave of 100 levels has 100^2/2, so -11.14 dB',
      10*np.log10((10**(band_energy(wave)/10)).sum()), 10*math.log10((100/255)**2/2), .01)
    tiny = Y[:2, :, 20:36, 20:36]
    p('texture', 'reference: Fourier sums in plain loops', band_energy(tiny), [octaves(x) for x in tiny], 1e-9)

def batches(p: Promises, s: SimpleNamespace):
    "Judges: the one place where the size of a batch may be seen."
    X, Y = s.X, s.Y
    judge, lpips = s.judge, s.lpips = efficientnet_judge(), lpips_judge()
    s.f0, s.f1, s.fo = (judge.embed(x).double().numpy() for x in (X, Y, s.other))
    one, seven = judge.embed(Y[:14], batch=1).numpy(), judge.embed(Y[:14], batch=7).numpy()
    top = np.abs(one).max()
    p('Judge.embed', 'batches of 1 and 7 (share of the largest feature)', one/top, seven/top, 2e-6)
    p('paired_distance', 'batches of 1 and 7', paired_distance(one, seven), 0, 1e-10)
    s1, s7 = lpips.embed(X[:7], batch=1), lpips.embed(X[:7], batch=7)
    p('LPIPS rows', 'batches of 1 and 7', s1, s7, 1e-6)
    p('lpips_distances', 'batches of 1 and 7', (s1 - s7).double().square().sum(1), 0, 1e-9)

def distribution(p: Promises, s: SimpleNamespace):
    "KID and CMMD."
    f0, f1, fo, order, e = s.f0, s.f1, s.fo, s.order, equal(24)
    u0, u1, uo = unit(f0), unit(f1), unit(fo)
    off = lambda K: (K.sum() - np.trace(K))/(len(K)*(len(K) - 1))
    K3, K1 = (f0@f0.T/1280 + 1)**3, 1000*gaussian()(u0, u0)
    p('mmd2', 'reference: double loop', mmd2(e, e, fo, f1)[0], mmd(fo, f1, cube), 1e-12)
    p('mmd2', "reference: torchmetrics' poly_mmd", mmd2(e, e, fo, f1)[0], poly_mmd(torch.from_numpy(fo), torch.from_numpy(f1)).item(), 1e-12)
    p('mmd2', 'symmetry', mmd2(e, e, fo, f1), mmd2(e, e, f1, fo), 1e-12)
    p('mmd2', 'order of images', mmd2(e, e, fo, f1[order]), mmd2(e, e, fo, f1), 1e-12)
    p('mmd2', 'a set with itself: 2/n (mean off the diagonal - mean on it)', mmd2(e, e, f0, f0)[0], 2/24*(off(K3) - np.trace(K3)/24), 1e-12)
    two = equal(2), equal(2), np.eye(2), np.eye(2)
    p('mmd2', 'by hand: unit vectors in 2 dimensions, (3/2)^3 and 1', mmd2(*two)[0], 1 + 1 - 2*(2*(3/2)**3 + 2*1)/4, 1e-15)
    k = kid(fo, f1, subsets=20)
    g = torch.Generator().manual_seed(seed_for(0, 'kid'))
    drawn = [[torch.randperm(24, generator=g)[:12].numpy() for _ in range(2)] for _ in range(20)]
    p('kid', 'reference: double loop on the same subsets', k['value'], np.mean([mmd(fo[a], f1[b], cube) for a, b in drawn]), 1e-6)
    p('kid', 'same seed, same bits', kid(fo, f1, subsets=20)['value'], k['value'], 0)
    p('kid', 'order of images: other subsets, within its std', kid(fo, f1[order], subsets=20)['value'], k['value'], k['std'])
    v = kid(fo, f1, subsets=400)
    p('kid', 'mean over 400 subsets is the value of all images, within 3 std / 20', v['value'], mmd2(e, e, fo, f1)[0], 3*v['std']/20)
    p('cmmd', 'reference: double loop', cmmd(fo, f1), 1000*mmd(uo, u1, bell), 1e-9)
    p('cmmd', 'symmetry', cmmd(fo, f1), cmmd(f1, fo), 1e-9)
    p('cmmd', 'order of images', cmmd(fo, f1[order]), cmmd(fo, f1), 1e-9)
    p('cmmd', 'scale', cmmd(fo, 7*f1), cmmd(fo, f1), 1e-9)
    p('cmmd', 'a set with itself: 2/n (mean off the diagonal - 1000)', cmmd(f0, f0), 2/24*(off(K1) - 1000), 1e-9)
    p('cmmd', 'by hand: all on one axis, all on another: 2000 (1 - exp(-1/100))', cmmd([[1, 0]]*3, [[0, 1]]*2), 2000*(1 - math.exp(-.01)), 1e-9)

def variety(p: Promises, s: SimpleNamespace):
    "Diversity, Vendi score, paired distance."
    f0, f1, order, w = s.f0, s.f1, s.order, np.array([[2, 1, 0, 1]])/4
    away = lambda a, b: 1 - cosine(a, b)
    p('diversity', 'identity: copies', diversity(f0[[0]*5]), 0, 1e-15)
    p('diversity', 'by hand: two pairs of copies, 4/6', diversity(np.eye(6)[[0, 0, 1, 1]]), 4/6, 1e-15)
    p('diversity', 'order of images', diversity(f0[order]), diversity(f0), 1e-15)
    p('diversity', 'scale', diversity(9*f0), diversity(f0), 1e-15)
    p('diversity', 'reference: double loop', diversity(f0), mean_over_pairs(away, f0), 1e-12)
    p('diversity', 'a weight is a repetition', diversity(f0[:4], w), mean_over_pairs(away, f0[:4], w[0]), 1e-12)
    p('vendi', 'identity: copies are 1', vendi(f0[[0]*5]), 1, 1e-12)
    p('vendi', 'by hand: n orthogonal are n, two pairs are 2', [vendi(np.eye(5)), vendi(np.eye(6)[[0, 0, 1, 1]])], [5, 2], 1e-12)
    p('vendi', 'order of images', vendi(f0[order]), vendi(f0), 1e-12)
    p('vendi', 'scale', vendi(9*f0), vendi(f0), 1e-12)
    p('vendi', 'reference: singular values', vendi(f0), effective_number(f0), 1e-12)
    p('vendi', 'a weight is a repetition', vendi(f0[:4], w), vendi(f0[[0, 0, 1, 3]]), 1e-12)
    p('paired_distance', 'identity', paired_distance(f0, f0), 0, 0)
    p('paired_distance', 'symmetry', paired_distance(f0, f1), paired_distance(f1, f0), 0)
    p('paired_distance', 'order of images', paired_distance(f0[order], f1[order]), paired_distance(f0, f1)[order], 0)
    p('paired_distance', 'scale', paired_distance(f0, 3*f1), paired_distance(f0, f1), 1e-12)
    p('paired_distance', 'by hand: 3-4-5 triangle, 1 - 3/5', paired_distance([[1, 0]], [[3, 4]]), 1 - 3/5, 1e-15)
    p('paired_distance', 'reference: a loop', paired_distance(f0, f1), [away(a, b) for a, b in zip(f0, f1)], 1e-12)

def positions(p: Promises, s: SimpleNamespace):
    "LPIPS."
    X, Y, lpips, at = s.X, s.Y, s.lpips, [2, 0, 3, 1]
    d = lpips_distances(lpips, X[:4], Y[:4])
    same = lpips_distances(lpips, X[:2], X[:2])[0, range(2), 1, range(2)]
    p('lpips_distances', 'identity', [*np.diagonal(d[0, :, 0]), *same], 0, 0)
    p('lpips_distances', 'symmetry', d, d.transpose(2, 3, 0, 1), 0)
    p('lpips_distances', 'order of images', lpips_distances(lpips, X[at], Y[at]), d[:, at][:, :, :, at], 1e-6)
    by_map = lpips_by_layers(lpips.network, *(lpips.prepare(x[:1]) for x in (X, Y)))
    p('lpips_distances', 'reference: LPIPS of one pair, map by map', d[0, 0, 1, 0], by_map, 1e-6)

def fidelity(p: Promises, s: SimpleNamespace):
    "Alignment with references and with text."
    f0, f1, order = s.f0, s.f1, s.order
    p('image_alignment', 'reference: a double loop', image_alignment(f1, f0[:5]), [np.mean([cosine(a, b) for b in f0[:5]]) for a in f1], 1e-12)
    p('image_alignment', 'order of references', image_alignment(f1, f0[order]), image_alignment(f1, f0), 1e-12)
    p('image_alignment', 'scale', image_alignment(3*f1, 5*f0), image_alignment(f1, f0), 1e-12)
    p('image_alignment', 'by hand: (1 + 0 + 3/5)/3', image_alignment([[1, 0]], [[2, 0], [0, 1], [3, 4]]), (1 + 0 + 3/5)/3, 1e-15)
    p('image_alignment', 'identity: one image with itself', image_alignment(f0[:1], f0[:1]), 1, 1e-12)
    p('image_alignment', 'symmetry of the mean', image_alignment(f1, f0[:5]).mean(), image_alignment(f0[:5], f1).mean(), 1e-12)
    p('real_ceiling', 'by hand: 1 of 3 pairs agrees', real_ceiling([[1, 0], [2, 0], [0, 1]]), 1/3, 1e-15)
    p('real_ceiling', 'reference: a double loop', real_ceiling(f0), mean_over_pairs(cosine, f0), 1e-12)
    p('real_ceiling', 'image_alignment without the image itself', real_ceiling(f0), (image_alignment(f0, f0).mean()*24 - 1)/23, 1e-12)
    p('real_ceiling', 'order and scale', real_ceiling(3*f0[order]), real_ceiling(f0), 1e-12)
    p('real_ceiling', 'a single reference: NaN', real_ceiling(f0[:1]), np.nan, 0)
    p('text_alignment', 'identity, opposite', [*text_alignment(f0, f0), *text_alignment(f0, -f0)], [1]*24 + [-1]*24, 1e-12)
    p('text_alignment', 'symmetry', text_alignment(f0, f1), text_alignment(f1, f0), 0)
    p('text_alignment', 'one text for all', text_alignment(f0, f1[0]), text_alignment(f0, f1[[0]*24]), 0)
    p('text_alignment', 'by hand: 4/5', text_alignment([[3, 4]], [0, 2]), 4/5, 1e-15)
    p('text_alignment', '1 - paired_distance', text_alignment(f0, f1), 1 - paired_distance(f0, f1), 1e-12)
    p('clip_score', 'by hand: cosines 1, 0, -1 and .316', clip_score([1, 0, -1, .316]), [2.5, 0, 0, .79], 1e-15)

def answered(p: Promises, s: SimpleNamespace):
    "Accuracies, drops, flips, confusions of sixty answers of two models."
    r, C = rng(0, 'answers'), 5
    y = r.integers(0, C, 60)
    b, a = (np.where(r.random(60) < q, y, r.integers(0, C, 60)) for q in (.8, .6))
    q = r.permutation(60)
    s.C, s.y, s.b, s.a, s.ps = C, y, b, a, r.random(30)**3
    # by hand: one of two, minus one of two, two of four
    L, B, A = s.L, s.B, s.A = np.array([[0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 0, 2, 2, 2, 2], [0, 1, 1, 1, 2, 2, 0, 0]])
    p('accuracy', 'by hand: 7 of 8, 5 of 8', [accuracy(L, B), accuracy(L, A)], [700/8, 500/8], 0)
    p('accuracy', 'reference: counting', accuracy(y, a), percent(sum(i == j for i, j in zip(y, a)), 60), 1e-12)
    p('accuracy', 'order of images', accuracy(y[q], a[q]), accuracy(y, a), 0)
    p('accuracy', 'identity', accuracy(y, y), 100, 0)
    p('accuracy', 'a weight is a repetition', accuracy(L, A, w=[[2, 1]*4]), [accuracy(np.repeat(L, [2, 1]*4), np.repeat(A, [2, 1]*4))], 1e-12)
    p('mean_class_accuracy', 'by hand: (1/2 + 2/2 + 2/4)/3', mean_class_accuracy(L, A, 3), 100*(1/2 + 2/2 + 2/4)/3, 1e-12)
    p('class_accuracy', 'reference: counting', class_accuracy(y, a, C), [percent(sum((y == c) & (a == c)), sum(y == c)) for c in range(C)], 1e-12)
    p('class_accuracy', 'a class without images: NaN', class_accuracy([0, 2], [0, 2], 3), [100, np.nan, 100], 0)
    p('class_drop', 'by hand: 1/2, -1/2, 2/4', class_drop(L, B, A, 3), [50, -50, 50], 0)
    p('class_drop', 'identity', class_drop(y, b, b, C), 0, 0)
    p('class_drop', 'antisymmetry', class_drop(y, b, a, C), -class_drop(y, a, b, C), 0)
    p('class_drop', 'order of images', class_drop(y[q], b[q], a[q], C), class_drop(y, b, a, C), 0)
    p('worst_class_drop', 'by hand: (50 + 20)/2 and max(25, -20, 10)', worst_class_drop([[50, -50, 0], [0, 10, 20]]), [35, 25], 0)
    p('worst_class_drop', 'identity', worst_class_drop(class_drop(y, b, b, C)), 0, 0)
    p('worst_class_drop', 'one run: both orders agree', worst_class_drop(class_drop(y, b, a, C)), class_drop(y, b, a, C).max(), 0)
    p('worst_class_drop', 'order of runs', worst_class_drop([[0, 10, 20], [50, -50, 0]]), [35, 25], 0)
    p('flip_rate', 'by hand: 4 of 8', flip_rate(B, A), 400/8, 0)
    p('flip_rate', 'identity', flip_rate(b, b), 0, 0)
    p('flip_rate', 'symmetry', flip_rate(b, a), flip_rate(a, b), 0)
    p('flip_rate', 'order of images', flip_rate(b[q], a[q]), flip_rate(b, a), 0)
    p('flip_rate', 'reference: counting', flip_rate(b, a), percent(sum(i != j for i, j in zip(b, a)), 60), 1e-12)
    p('confusion', 'rows sum to 100', confusion(y, a, C).sum(1), 100, 1e-12)
    p('confusion', 'its diagonal is class_accuracy', np.diag(confusion(y, a, C)), class_accuracy(y, a, C), 1e-12)
    p('confusion', 'by hand: 1/2 1/2 0, 0 1 0, 2/4 0 2/4', confusion(L, A, 3), [[50, 50, 0], [0, 100, 0], [50, 0, 50]], 0)
    p('confusion', 'order of images', confusion(y[q], a[q], C), confusion(y, a, C), 0)
    counted = [[percent(sum((y == i) & (a == j)), sum(y == i)) for j in range(C)] for i in range(C)]
    p('confusion', 'reference: counting', confusion(y, a, C), counted, 1e-12)
    t, m = new_confusions(y, list(range(C)), b, a), confusion(y, a, C) - confusion(y, b, C)
    p('new_confusions', 'the change is that of confusion', t.change, m[t['class'], t.answer], 1e-12)
    p('new_confusions', "p: scipy's binomtest", t.p, [binomtest(i, i + j, alternative='greater').pvalue for i, j in zip(t.came, t.left)], 1e-12)
    hand = new_confusions(L, ['cat', 'dog', 'car'], B, A).set_index(['class', 'answer']).loc[('car', 'cat')]
    p('new_confusions', 'by hand: 2 of 4 cars became cats',
      hand[['base', 'adapted', 'change', 'came', 'left', 'p']].astype(float), [0, 50, 50, 2, 0, 1/4], 0)
    p('new_confusions', 'identity: no rows', len(new_confusions(y, range(C), a, a)), 0, 0)
    p('paired_interval', 'no changed answer: around zero', sum(paired_interval('accuracy_drop', y, b, b)), 0, 1e-12)
    p('paired_interval', 'same seed, same bits', paired_interval('flip_rate', y, b, a), paired_interval('flip_rate', y, b, a), 0)

def tested(p: Promises, s: SimpleNamespace):
    "Tests of many classes, intervals of shares."
    ps = s.ps
    p('holm', 'by hand: 4/200, 3/100, 2/33.3, and not less', holm([.01, .04, .03, .005]), [.03, .06, .06, .02], 1e-15)
    p('holm', 'reference: step by step', holm(ps), step_down(ps), 1e-15)
    p('holm', 'order of the tests', holm(ps[::-1]), holm(ps)[::-1], 0)
    p('holm', 'one test: itself', holm([.03]), .03, 0)
    counts = list(itertools.product(range(7), repeat=2))
    i, j = np.array(counts).T
    exact = lambda side: [binomtest(int(k), int(k + l), alternative=side).pvalue if k + l else 1. for k, l in counts]
    p('sign_test', 'by hand: 5 of 5, 1/32; 3 of 4, 5/16', sign_test([5, 3], [0, 1]), [1/32, 5/16], 1e-15)
    p('sign_test', "scipy's binomtest, one side", sign_test(i, j), exact('greater'), 1e-12)
    p('sign_test', "scipy's binomtest, two sides", sign_test(i, j, True), exact('two-sided'), 1e-12)
    p('sign_test', 'two sides: symmetry', sign_test(i, j, True), sign_test(j, i, True), 0)
    few = (0, 5), (7, 20), (5, 5)
    ci = [binomtest(*k).proportion_ci(method='wilson') for k in few]
    p('wilson', "reference: scipy's interval", [wilson(*k, norm.ppf(.975))[1:] for k in few], [(100*c.low, 100*c.high) for c in ci], 1e-12)
    p('wilson', 'by hand, 1 of 2 with z = 1: 50 and 50 +- 50/sqrt(3)', wilson(1, 2, 1.), [50, 50 - 50/3**.5, 50 + 50/3**.5], 1e-12)
    p('wilson', 'mirror', wilson(7, 20), 100 - np.array(wilson(13, 20))[[0, 2, 1]], 1e-12)

PARTS = dict(
    pictures=(colours, texture),
    features=(batches, distribution, variety, positions, fidelity),
    answers=(answered, tested),
)
