"""What Python programs spend their time on: calls, attributes, numbers, strings, dictionaries, lists."""


class Account:
    def __init__(self, owner):
        self.owner = owner
        self.balance = 0

    def deposit(self, amount):
        self.balance += amount
        return self


def words(count):
    for i in range(count):
        yield f"word{i * 7919 % 997}"


accounts = [Account(n) for n in range(100)]
counts = {}
total = 0.0
for i in range(60000):
    account = accounts[i % 100].deposit(i & 15)
    total += account.balance * 0.5 / (i + 1)
for word in words(60000):
    counts[word] = counts.get(word, 0) + 1
text = " ".join(sorted(counts))
squares = sorted((n * n % 1009 for n in range(20000)), reverse=True)
big = 3**2000 // 7**300
assert len(counts) == 997 and len(text) == sum(map(len, counts)) + 996 and squares[0] == 1008 and big > 0
