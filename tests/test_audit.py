"""The audit of a file: what did not change is never called changed; a known change is found; the command on a base of one's own; wrong input is one
error."""
import json, os, sys

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file

import warm
from openworld_forget.audit.audited import Audited
from openworld_forget.audit.command import _ready as ready_to_audit, arguments, main, steps_of
from openworld_forget.audit.leak import GROUPS, called, asked_of, copycat, fresh_pictures, leak, likeness
from openworld_forget.audit.looks import Recognized
from openworld_forget.audit.scan import base_pictures, reliability, scan, word_table
from openworld_forget.audit.together import said_of_stack, stacked
from openworld_forget.audit.told import Found, copy_wall, said_of_copies, said_of_likeness, told
from openworld_forget.core import generator
from openworld_forget.metrics.judges import efficientnet_judge
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

@pytest.fixture
def on_tiny(tmp_path, monkeypatch):
    "The audit, at the smallest size, of a LoRA of random numbers (by=0: one that changes nothing) on a base of one's own, judged by what is shipped."
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'outputs')); monkeypatch.setattr('openworld_forget.audit.leak.feature_judge', lambda _: efficientnet_judge())
    w = tiny_world(); save_world(w, tmp_path/'sd'); (tmp_path/'words.csv').write_text('\n'.join(f'{x.name},{x.category}' for x in WORDS))
    def made(by):
        shaken(w, tmp_path/'own.safetensors', by=by)
        save_file(load_file(tmp_path/'own.safetensors'), tmp_path/'lora.safetensors')       # as another tool writes it: without the base's key
        return Audited(str(tmp_path/'lora.safetensors'), str(tmp_path/'sd'), str(tmp_path/'words.csv'), 'smoke', 'x', 'cat')
    return made

def found(like, copies=None): return Found('x', None, pd.DataFrame(), [], [], None, pd.DataFrame(), Recognized(pd.DataFrame(), [], 0), None, like, copies)

def test_a_file_that_changes_nothing_makes_no_picture_more_like_the_photos(on_tiny):
    a = on_tiny(0.); photos = torch.randint(256, (3, 3, 64, 64), generator=generator(0, 'photos'), dtype=torch.uint8)
    k = likeness(a, photos, 5); t = k.rows.set_index('group')
    assert list(t.index) == list(GROUPS.values()) and (t.gain == 0).all() and (t.base == t.adapted).all() and (t.network == efficientnet_judge().name).all()
    assert (t.low[:2] == 0).all() and t.low[2:].isna().all() and list(t.words) == [1, 1, 4, 4] and list(t.n) == [5, 5, 4, 4]      # four words: no interval
    assert said_of_likeness(found(k)).verdict == 'no, exactly' and likeness(a, None) is None and said_of_likeness(found(None)).verdict == 'not measured'

def test_photos_that_are_the_pictures_are_all_copied_and_one_photo_is_no_measure(on_tiny):
    a = on_tiny(.3); photos = fresh_pictures(a, asked_of(a, *called(a), 5)['word'], 5)[1]
    c = copycat(a, photos, 5); t = c.rows
    assert t.near.all() and (t.photo == t.picture).all() and np.allclose(t.cosine, 1) and torch.equal(c.shown, c.beside) and (t.base < t.cosine).all()
    assert said_of_copies(c).startswith('5 of 5 pictures with the word (100 % [') and copy_wall(c)
    k = likeness(a, photos, 5).rows.set_index('group'); assert k.gain[GROUPS['word']] > 0
    twice = copycat(a, torch.cat([photos, photos[:1]]), 5); assert twice.photos == 5 and twice.rows.near.all()      # a file that is there twice counts once
    one = copycat(a, photos[:1], 5); assert one.rows.near.isna().all() and said_of_copies(one).startswith('No measure of near with 1 photo') and copy_wall(one)

def test_a_folder_without_pictures_is_one_error_and_photos_are_in_the_key(on_tiny, tmp_path, capsys):
    a = on_tiny(0.); (tmp_path/'none').mkdir(); (tmp_path/'my photos').mkdir()
    args = ['audit', str(a.file), '--base', str(tmp_path/'sd'), '--budget', 'smoke', '--photos']
    assert main([*args, str(tmp_path/'none')]) == 2
    assert 'holds no images' in (e := capsys.readouterr().err) and 'Traceback' not in e and not (tmp_path/'outputs/audits').exists()
    def key(folder): return steps_of(str(a.file), arguments([*args, folder]), '')[1][0].key
    def paint(v): Image.new('RGB', (64, 64), (v, v, v)).save(tmp_path/'my photos/1.png'); return key(str(tmp_path/'my photos'))
    assert key('') != paint(10) == paint(10) != paint(11)

def test_a_stack_is_audited_with_its_strengths(on_tiny, tmp_path, capsys):
    "A file and its negative change nothing together; the strength is in the key; what belongs to single files is refused."
    save_file(load_file(on_tiny(.3).file), tmp_path/'lora.safetensors'); file, base, words = (str(tmp_path/x) for x in ('lora.safetensors', 'sd', 'words.csv'))
    def ask(text): return stacked(Audited(text, base, words, 'smoke'))
    none, same = ask(f'{file}+{file}:-1'), ask(f'{file}+{file}:1')
    assert none.together.max() < 1e-3 < none.alone.min()
    assert (same.together > same.apart).all() and 'they reinforce' in said_of_stack(same) or len(same.words) < 5
    args = ['audit', '--base', base, '--words', words, '--budget', 'smoke']
    keys = {steps_of(f'{file}+{file}:{s}', arguments(args), '')[1][0].key for s in (.5, .7)}
    assert len(keys) == 2 and steps_of(f'{file}+{file}:0.5', arguments(args), '')[0].home != steps_of(file, arguments(args), '')[0].home
    for text, more, says in ((f'{file}+{tmp_path}/no.safetensors', [], 'no file'), (f'{file}+{file}', ['--strength', '0,1'], 'strengths of its own')):
        assert main(['audit', text, *args[1:], *more]) == 2
        assert says in capsys.readouterr().err
    x = steps_of(f'{file}+{file}:0.5', arguments(args), ''); assert ready_to_audit([x], x[1], 1.).rate > 0      # what the command does before its first step

@pytest.fixture(scope='module')
def audited(tmp_path_factory):
    "The whole command, at the smallest size, on a base of one's own in Stable Diffusion 1.5's layout, without labelled images."
    d = tmp_path_factory.mktemp('audit'); w = tiny_world(); save_world(w, d/'sd')
    shaken(w, d/'own.safetensors')
    t = load_file(d/'own.safetensors')
    save_file(t, d/'pytorch_lora_weights.safetensors', {'modelspec.trigger_phrase': 'x cat'})
    (d/'words.csv').write_text('\n'.join(f'{x.name},{x.category}' for x in WORDS))
    args = [str(d/'pytorch_lora_weights.safetensors'), '--base', str(d/'sd'), '--words', str(d/'words.csv'), '--budget', 'smoke', '--out', str(d/'out')]
    env = {'OWF_OUTPUTS': str(d/'outputs'), 'OWF_DATA': str(d/'data')}
    env['OWF_FIGURES'] = 'pdf'
    done = warm.run([sys.executable, '-m', 'openworld_forget.audit', *args], env={**os.environ, **env})
    def again(*more):
        with pytest.MonkeyPatch.context() as m:
            for k, v in env.items(): m.setenv(k, v)
            return main(['audit', *args, *more])
    return d, done, again

def test_the_command_ends_with_the_answers_and_a_page(audited):
    d, r, _ = audited
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    assert 'Does it still draw other things as before?' in r.stdout and str(d/'out/audit.html') in r.stdout
    page = (d/'out/audit.html').read_text(); assert 'data:image/png;base64' in page and 'injected-parameters' not in page

def test_what_it_wrote_is_for_machines_too(audited):
    d = audited[0]; r = json.loads((d/'out/audit.json').read_text())
    t = pd.read_csv(d/'out/audit.csv'); assert set(t.word) == {w.name for w in WORDS} and (t.change > 0).all() and t.change.is_monotonic_decreasing
    c = r['change']; assert c['words'] == 9 and c['low'] < c['mean'] < c['high'] and c['mean'] == pytest.approx(t.change.mean())
    assert {'figures/words.png', 'figures/words.pdf'} <= {p.relative_to(d/'out').as_posix() for p in (d/'out').rglob('figures/*')}
    assert len(r['answers']) == 5 and all(x['verdict'] for x in r['answers'])
    assert r['answers'][1]['verdict'] == 'not measured' and r['leak'] and r['most'][0] == t.word[0]

def test_a_second_call_measures_nothing_and_a_threshold_fails_it(audited, capsys):
    d, _, again = audited; before = (d/'out/audit.ipynb').stat().st_mtime_ns
    assert again('--fail-above', '0.000001') == 3 and 'is above' in capsys.readouterr().err and (d/'out/audit.ipynb').stat().st_mtime_ns == before
    assert again('--fail-above', '1000') == 0

@pytest.mark.parametrize('args, says', [
    (['none.safetensors'], 'does not exist'), (['{d}/words.csv'], 'not a safetensors file'), (['{f}', '--base', 'minni'], "Did you mean 'mini'"),
    (['{f}', '--words', '{d}/none'], 'does not exist'), (['{f}', '{f}'], 'same content'), (['{f}', '--base', 'mini'], 'base'),
])
def test_wrong_input_is_one_error(audited, monkeypatch, capsys, tmp_path, args, says):
    d = audited[0]; monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path)); monkeypatch.chdir(d)
    args = [x.format(d=d, f=d/'pytorch_lora_weights.safetensors') for x in args]
    assert main(['audit', *args, '--budget', 'smoke']) == 2
    assert says in (e := capsys.readouterr().err) and 'Traceback' not in e and not (tmp_path/'audits').exists()
