package bolt

// Plan bounds how many pages a bucket takes whose rows are known by their sizes only, in any order.
//
// A page is full when the next row does not fit: what is left empty is less than that row. So of P pages that hold T bytes of rows
// no more is empty than the P longest rows are long, and P is at most what satisfies that. Rows that are longer than a page have
// pages of their own, and may end one before it is full.
type Plan struct {
	sizes    [wholePage/sizeStep + 1]uint64 // how many rows are so long, in steps
	bytes    uint64                         // of rows that fit on a page
	rows     uint64                         // of these
	long     uint64                         // rows that are longer
	ofLong   uint64                         // pages of these
	keyBytes int                            // of the longest key
}

const sizeStep = 8

// Add counts a row.
func (p *Plan) Add(key, value int) {
	p.keyBytes = max(p.keyBytes, key)
	n := elementBytes + key + value
	if n > wholePage {
		p.long++
		p.ofLong += uint64(pagesOf(n))
		return
	}
	p.rows++
	p.bytes += uint64(n)
	p.sizes[(n+sizeStep-1)/sizeStep]++
}

// Pages is how many pages the bucket takes at most.
func (p *Plan) Pages() uint64 {
	n := max(1, p.leaves())
	all := n
	per := max(2, uint64(wholePage/(elementBytes+p.keyBytes))) // pages below a branch, but for the last, at the least
	for n > 1 {
		n = (n + per - 1) / per
		all += n * uint64(pagesOf(2*(elementBytes+p.keyBytes)))
	}
	return all
}

func (p *Plan) leaves() uint64 {
	if p.rows == 0 {
		return p.ofLong
	}
	least := p.long + 1 // pages that others end, and the last
	// Two pages in a row hold more than one page has room for, and each so many rows as there would be of the longest.
	pages := min(p.rows/(wholePage/p.longestRow())+least, 2*p.bytes/wholePage+1+least)
	for {
		fewer := (p.bytes+p.longest(pages))/wholePage + least
		if fewer >= pages {
			return pages + p.ofLong
		}
		pages = fewer
	}
}

// longestRow is how long the longest row is that fits on a page, in whole steps as far as there is room for them.
func (p *Plan) longestRow() uint64 {
	i := len(p.sizes) - 1
	for p.sizes[i] == 0 {
		i--
	}
	return min(uint64(i)*sizeStep, wholePage)
}

// longest is how many bytes the n longest rows have that fit on a page.
func (p *Plan) longest(n uint64) (bytes uint64) {
	for i := len(p.sizes) - 1; i >= 0 && n > 0; i-- {
		some := min(n, p.sizes[i])
		bytes += some * uint64(i) * sizeStep
		n -= some
	}
	return bytes
}
