"""The page, in a browser: a conversation, probabilities on hover, the receipt."""

import json

import pytest
from browser import browser
from serving import chat_model, serving

import llorch
from llorch import receipts

for name in ("starlette", "uvicorn", "prometheus_client", "llguidance"):
    pytest.importorskip(name)


def test_the_page(tmp_path):
    model = llorch.CausalLM.from_pretrained(chat_model(tmp_path / "talk"))
    with serving(model.path, LLORCH_API_KEY="word") as (_, address), browser() as page:
        page.open(f"{address}/")
        page.wait("document.getElementById('model').textContent.includes('API key is missing')")
        page.run("""(() => {
            document.getElementById('key').value = 'word';
            document.getElementById('seed').value = '5';
            document.getElementById('most').value = '30';
            document.getElementById('prompt').value = 'Who goes there?';
            document.getElementById('form').requestSubmit();
        })()""")
        page.wait("document.querySelector('.below button')")
        wanted = model.chat([{"role": "user", "content": "Who goes there?"}], 30, temperature=0.7, seed=5)
        assert page.run("document.querySelector('.assistant .text').textContent") == wanted.text
        assert page.run("document.querySelector('.below').textContent") == "length, seed 5 receipt"
        page.hover("document.querySelectorAll('.token')[1]")
        page.wait("document.getElementById('tip').style.display === 'block'")
        tip = page.run("document.getElementById('tip').textContent").splitlines()
        assert 5 <= len(tip) <= 6 and sum("  > " in line for line in tip) == 1 and all(" %  " in line for line in tip)
        page.run("document.querySelector('.below button').click()")
        page.wait("document.querySelector('pre')")
        receipt = receipts.loads(page.run("document.querySelector('pre').textContent"))
        assert receipts.verify(receipt, model).status == 0 and receipt["text"] == wanted.text
        page.run("""(() => {
            document.getElementById('prompt').value = '<img src=x onerror=alert(1)>';
            document.getElementById('form').requestSubmit();
        })()""")
        page.wait("document.querySelectorAll('.below button').length === 2")
        again = [{"role": "user", "content": "Who goes there?"}, wanted.message,
                 {"role": "user", "content": "<img src=x onerror=alert(1)>"}]  # fmt: skip
        second = model.chat(again, 30, temperature=0.7, seed=5)
        assert page.run("document.querySelectorAll('.assistant .text')[1].textContent") == second.text
        assert page.run("document.querySelectorAll('img').length") == 0, "a message is text"
        assert all(url.startswith((address, "data:")) for url in page.asked), "no resource from elsewhere"
        refused = [one for one in page.complaints if "401" not in json.dumps(one)]  # before the key was given
        assert not refused
