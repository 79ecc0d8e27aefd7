"""The audit of a file: what did not change is never called changed; a known change is found; the command on a base of one's own; wrong input is one
error."""
import json, os, subprocess, sys

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file, save_file

from conftest import ROOT
from openworld_forget.audit.audited import Audited
from openworld_forget.audit.command import main
from openworld_forget.audit.leak import GROUPS, leak
from openworld_forget.audit.looks import Recognized
from openworld_forget.audit.scan import base_pictures, reliability, scan, word_table
from openworld_forget.audit.told import Found, told
from openworld_forget.core import generator
from openworld_forget.training.adapt import Adaptation, adapt, save_adapted
from openworld_forget.training.checkpoints import add_token, load_adapted
from openworld_forget.worlds.data import Word
from openworld_forget.worlds.load import load_world
from openworld_forget.worlds.tiny import save_world, tiny_world

KINDS = dict(animals='cat dog cow pig fox', things='cup car hat box')
WORDS = [Word(name=w, prompt=f'a photo of a {w}', category=c) for c, ws in KINDS.items() for w in ws.split()]

def shaken(base, path, token='x', by=.3, **meta):
    "A LoRA of random numbers, as a world and a file."
    a = Adaptation(kind='lora'); w, params = adapt(base, a, token)
    with torch.no_grad():
        for k, p in params.items(): p.copy_(by*torch.randn(p.shape, generator=generator(0, k)))
    save_adapted(path, base, params, a, token, **meta); return w

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def pictures(base): return base_pictures(base, WORDS, 2, steps=2)
def verdict_of(table):
    return told(Found('x', None, table, [], [], None, pd.DataFrame(), Recognized(pd.DataFrame(), [], 0), None))[0].verdict

@pytest.mark.parametrize('rank', range(1, 21))
def test_an_untrained_lora_changed_no_word(base, pictures, rank):
    "Twenty tries: not one word, not by one bit; and the sentence says so."
    w, _ = adapt(base, Adaptation(kind='lora', rank=rank, alpha=2.*rank), 'x')
    t = word_table(scan(base, w, WORDS, pictures, 2)); assert (t[['change', 'drift', 'own', 'lost']] == 0).all(axis=None) and verdict_of(t) == 'yes, exactly'

def test_the_base_against_itself_changed_no_word(base, pictures):
    s = scan(base, base.but('again'), WORDS, pictures, 2)
    assert (word_table(s).change == 0).all() and np.isnan(reliability(s))

def test_a_textual_inversion_changes_its_word_and_no_other(base, pictures):
    w = add_token(base, '<new>', torch.randn(32, generator=generator(0, 'word')))
    t = word_table(scan(base, w, WORDS, pictures, 2)); assert (t.change == 0).all()
    own = [Word(name='<new>', prompt='a photo of a <new>')]; assert word_table(scan(base, w, own, base_pictures(base, own, 2, steps=2), 2)).change[0] > 0

def test_the_change_grows_with_the_strength_and_batches_do_not_matter(base, pictures, tmp_path):
    w, seen = shaken(base, tmp_path/'adapter.safetensors'), []
    for k in (.25, .5, 1.):
        v = load_adapted(base, tmp_path/'adapter.safetensors', strength=k)
        seen.append(word_table(scan(base, v, WORDS, pictures, 2)).change.mean())
    assert 0 < seen[0] < seen[1] < seen[2]
    one, all_ = (scan(base, w, WORDS, pictures, 2, batch=k, cache=c) for k, c in ((3, None), (64, tmp_path)))
    np.testing.assert_allclose(one.terms, all_.terms, rtol=1e-3, atol=1e-6)
    assert np.array_equal(scan(base, w, WORDS, pictures, 2, cache=tmp_path).terms, all_.terms) and len(list(tmp_path.glob('heard-*'))) == 1

def test_the_share_without_the_word_is_that_of_its_formula(tmp_path, monkeypatch):
    "On the mini world: a LoRA of random numbers acts everywhere; the shares are ratios of root mean squares, 1 for the word itself."
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    shaken(load_world('mini', 'cpu'), tmp_path/'adapter.safetensors', 'sks', .1, subject='cat-noto')
    x = Audited(str(tmp_path/'adapter.safetensors'), budget='smoke'); s = x.scan(); k = leak(x, s, 4); t = k.rows.set_index('group')
    assert (k.token, k.cls) == ('sks', 'cat face') and t.share[GROUPS['word']] == 1 and (t.share > 0).all()
    for g in t.index: assert t.share[g] == pytest.approx(t.effect[g]/t.effect[GROUPS['word']], rel=1e-9)
    assert leak(Audited(str(tmp_path/'adapter.safetensors'), budget='smoke', token='sks', class_word='dog face'), s, 4).cls == 'dog face'

@pytest.fixture(scope='module')
def audited(tmp_path_factory):
    "The whole command, at the smallest size, on a base of one's own in Stable Diffusion 1.5's layout, without labelled images."
    d = tmp_path_factory.mktemp('audit'); w = tiny_world(); save_world(w, d/'sd')
    shaken(w, d/'own.safetensors')
    t = load_file(d/'own.safetensors')
    save_file(t, d/'pytorch_lora_weights.safetensors', {'modelspec.trigger_phrase': 'x cat'})
    (d/'words.csv').write_text('\n'.join(f'{x.name},{x.category}' for x in WORDS))
    cmd = [sys.executable, '-m', 'openworld_forget.audit', str(d/'pytorch_lora_weights.safetensors'), '--base', str(d/'sd'), '--words', str(d/'words.csv'),
           '--budget', 'smoke', '--out', str(d/'out')]
    env = {**os.environ, 'OWF_OUTPUTS': str(d/'outputs'), 'OWF_DATA': str(d/'data'), 'OMP_NUM_THREADS': '1', 'TRANSFORMERS_VERBOSITY': 'error'}
    def run(*more): return subprocess.run([*cmd, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL)
    return d, run(), run

def test_the_command_ends_with_the_answers_and_a_page(audited):
    d, r, _ = audited
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    assert 'Does it still draw other things as before?' in r.stdout and str(d/'out/audit.html') in r.stdout
    page = (d/'out/audit.html').read_text(); assert 'data:image/png;base64' in page and 'injected-parameters' not in page

def test_what_it_wrote_is_for_machines_too(audited):
    d = audited[0]; r = json.loads((d/'out/audit.json').read_text())
    t = pd.read_csv(d/'out/audit.csv'); assert set(t.word) == {w.name for w in WORDS} and (t.change > 0).all() and t.change.is_monotonic_decreasing
    c = r['change']; assert c['words'] == 9 and c['low'] < c['mean'] < c['high'] and c['mean'] == pytest.approx(t.change.mean())
    assert len(r['answers']) == 4 and all(x['verdict'] for x in r['answers'])
    assert r['answers'][1]['verdict'] == 'not measured' and r['leak'] and r['most'][0] == t.word[0]

def test_a_second_call_measures_nothing_and_a_threshold_fails_it(audited):
    d, _, run = audited; before = (d/'out/audit.ipynb').stat().st_mtime_ns
    r = run('--fail-above', '0.000001'); assert r.returncode == 3 and 'is above' in r.stderr and (d/'out/audit.ipynb').stat().st_mtime_ns == before
    assert run('--fail-above', '1000').returncode == 0

@pytest.mark.parametrize('args, says', [
    (['none.safetensors'], 'does not exist'), (['{d}/words.csv'], 'not a safetensors file'), (['{f}', '--base', 'minni'], "Did you mean 'mini'"),
    (['{f}', '--words', '{d}/none'], 'does not exist'), (['{f}', '{f}'], 'same content'), (['{f}', '--base', 'mini'], 'base'),
])
def test_wrong_input_is_one_error(audited, monkeypatch, capsys, tmp_path, args, says):
    d = audited[0]; monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path)); monkeypatch.chdir(d)
    args = [x.format(d=d, f=d/'pytorch_lora_weights.safetensors') for x in args]
    assert main(['audit', *args, '--budget', 'smoke']) == 2
    assert says in (e := capsys.readouterr().err) and 'Traceback' not in e and not (tmp_path/'audits').exists()
